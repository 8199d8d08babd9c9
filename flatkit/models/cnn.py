"""A small convolutional network for images of 8x8 up to about 64x64."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError
from flatkit.models.activations import build_activation
from flatkit.models.image_shape import check_image


def build_cnn(
    *,
    in_shape: Sequence[int],
    classes: int,
    width: int = 16,
    batchnorm: bool = True,
    activation: str = "relu",
    pool: int = 1,
) -> nn.Module:
    """Return three 3x3 convolutions (the last two halve the image), a mean, a linear layer.

    Args:
        in_shape: (channels, height, width) of one image; sides of at least 4.
        classes: number of outputs.
        width: channels of the first convolution; the others have 2 and 4 times as many.
        batchnorm: batch normalisation after every convolution; without it they have biases.
        activation: `relu`, `tanh`, `gelu`, `silu` or `softplus`.
        pool: means are taken of so many fields a side; 1 is the global mean, and more keep where
            something is, so that few epochs fit the training set. At most a quarter of the
            smaller side, rounded up.

    Raises:
        InvalidArgumentError: not an image, or one too small; a width below 1; a pool that is too
            large; unknown activation.

    >>> model = build_cnn(in_shape=(1, 8, 8), classes=10, width=2, batchnorm=False)
    >>> sum(p.numel() for p in model.parameters())  # 2*9+2 + 4*2*9+4 + 8*4*9+8 + 8*10+10
    482
    """
    channels = check_image("cnn", in_shape, side=4)
    check_count("width", width)
    _check_pool(pool, min(in_shape[1:]))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, factor in enumerate((1, 2, 4), start=1):
        layers[f"block{number}"] = _block(
            channels, width * factor, stride=min(number, 2), batchnorm=batchnorm, act=activation
        )
        channels = width * factor
    layers["pool"] = nn.AdaptiveAvgPool2d(pool)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels * pool**2, check_count("classes", classes))
    return nn.Sequential(layers)


def _check_pool(pool: int, side: int) -> None:
    left = -(-side // 4)  # both strides of 2 round up
    if check_count("pool", pool) > left:
        raise InvalidArgumentError(
            f"pool must be at most {left}, the side to which the cnn brings images of side {side}, "
            f"got {pool}"
        )


def _block(channels: int, out: int, *, stride: int, batchnorm: bool, act: str) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        # BatchNorm subtracts the mean over the batch: a bias before it would change nothing.
        conv=nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=not batchnorm)
    )
    if batchnorm:
        layers["batchnorm"] = nn.BatchNorm2d(out)
    layers["activation"] = build_activation(act)
    return nn.Sequential(layers)
