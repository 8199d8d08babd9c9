"""Models by name; a checkpoint stores the name and the keyword arguments, never code."""

from typing import Any

from flatkit.registry import Registry

MODELS: Registry[Any] = Registry(
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
    group="flatkit.models",
)

__all__ = ["MODELS"]
