"""Data sets by name; each is rebuilt exactly from its name and keyword arguments."""

from typing import Any

from flatkit.registry import Registry

DATASETS: Registry[Any] = Registry(
    "data",
    {
        "digits": "flatkit.data.digits:build_digits",
        "gaussians": "flatkit.data.gaussians:build_gaussians",
        "cifar10": "flatkit.data.cifar:build_cifar10",
        "cifar100": "flatkit.data.cifar:build_cifar100",
        "mnist": "flatkit.data.mnist:build_mnist",
        "fashion_mnist": "flatkit.data.mnist:build_fashion_mnist",
    },
    group="flatkit.data",
)

__all__ = ["DATASETS"]
