"""Data sets by name; each is rebuilt exactly from its name and keyword arguments."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from flatkit.registry import Registry

if TYPE_CHECKING:
    from flatkit.data.dataset import Dataset, Split

DATASETS = Registry(
    "data",
    {
        "digits": "flatkit.data.digits:build_digits",
        "gaussians": "flatkit.data.gaussians:build_gaussians",
        "cifar10": "flatkit.data.cifar:build_cifar10",
        "cifar100": "flatkit.data.cifar:build_cifar100",
        "mnist": "flatkit.data.mnist:build_mnist",
        "fashion_mnist": "flatkit.data.mnist:build_fashion_mnist",
    },
)

__all__ = ["DATASETS", "Dataset", "Split"]


def __getattr__(name: str) -> Any:
    if name in ("Dataset", "Split"):
        return getattr(import_module("flatkit.data.dataset"), name)
    raise AttributeError(f"module 'flatkit.data' has no attribute {name!r}")
