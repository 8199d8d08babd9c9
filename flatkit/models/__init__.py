"""Models by name; a checkpoint stores the name and the keyword arguments, never code."""

from flatkit.registry import Registry

MODELS = Registry(
    "model",
    {
        "mlp": "flatkit.models.mlp:build_mlp",
        "cnn": "flatkit.models.cnn:build_cnn",
        "resnet18": "flatkit.models.resnet:build_resnet18",
        "resnet20": "flatkit.models.resnet:build_resnet20",
        "resnet56": "flatkit.models.resnet:build_resnet56",
        "wide_resnet": "flatkit.models.wide_resnet:build_wide_resnet",
        "pyramidnet": "flatkit.models.pyramidnet:build_pyramidnet",
        "vit": "flatkit.models.vit:build_vit",
    },
)

__all__ = ["MODELS"]
