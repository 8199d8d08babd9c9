"""Models by name; a checkpoint stores the name and the keyword arguments, never code."""

from flatkit.registry import Registry

MODELS = Registry(
    "model",
    {
        "mlp": "flatkit.models.mlp:build_mlp",
        "cnn": "flatkit.models.cnn:build_cnn",
        "resnet20": "flatkit.models.resnet:build_resnet20",
    },
)

__all__ = ["MODELS"]
