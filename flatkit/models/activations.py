"""Activations by name.

Curvature exists everywhere only for smooth ones; a ReLU network is piecewise smooth and its
Hessian is that of the piece at hand.
"""

from torch import nn

from flatkit.checks import check_choice

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def build_activation(name: str) -> nn.Module:
    """Return a new activation layer.

    Raises:
        InvalidArgumentError: unknown name.

    >>> build_activation("tanh")
    Tanh()
    """
    return ACTIVATIONS[check_choice("activation", name, ACTIVATIONS)]()
