"""The multilayer perceptron."""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

from torch import nn

from flatkit.checks import check_count
from flatkit.models.activations import build_activation


def build_mlp(
    *,
    in_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] | int = (64, 64),
    activation: str = "tanh",
) -> nn.Module:
    """Return fully connected layers with one activation between them.

    Args:
        in_shape: shape of one sample; it is flattened.
        classes: number of outputs.
        hidden: widths of the hidden layers; a number is one layer, an empty sequence makes the
            model linear.
        activation: `tanh` (smooth, the default), `relu`, `gelu`, `silu` or `softplus`.

    Raises:
        InvalidArgumentError: a width that is not a whole number above zero; unknown activation.

    >>> model = build_mlp(in_shape=(1, 2, 2), classes=3, hidden=(5,))
    >>> sum(p.numel() for p in model.parameters())       # 4*5 + 5  +  5*3 + 3
    43
    """
    # The command line gives a lone number as such.
    hidden = (hidden,) if isinstance(hidden, int) else hidden
    widths = [check_count("hidden", width) for width in hidden]
    features = prod(check_count("in_shape", size) for size in in_shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, width in enumerate(widths, start=1):
        layers[f"hidden{number}"] = nn.Linear(features, width)
        layers[f"activation{number}"] = build_activation(activation)
        features = width
    layers["output"] = nn.Linear(features, check_count("classes", classes))
    return nn.Sequential(layers)
