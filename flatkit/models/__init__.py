"""Models by name; a checkpoint stores the name and the keyword arguments, never code."""

from flatkit.registry import Registry

MODELS = Registry(
    "model", {"mlp": "flatkit.models.mlp:build_mlp", "cnn": "flatkit.models.cnn:build_cnn"}
)

__all__ = ["MODELS"]
