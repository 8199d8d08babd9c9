"""Residual networks for small images: the CIFAR family of He et al. (2016), and ResNet-18."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from flatkit.checks import check_count
from flatkit.models.image_shape import check_image


def build_resnet20(*, in_shape: Sequence[int], classes: int, width: int = 16) -> nn.Module:
    """Return the ResNet-20 of He et al. (2016, section 4.2), with identity shortcuts (option A).

    A 3x3 convolution, three stages of three residual blocks with `width`, 2·`width` and
    4·`width` channels (the last two halve the image), a global mean, a linear layer. Every
    convolution is followed by BatchNorm.

    Args:
        in_shape: (channels, height, width) of one image; sides of at least 4.
        classes: number of outputs.
        width: channels of the first stage.

    Raises:
        InvalidArgumentError: not an image, or one too small; a width below 1.

    >>> model = build_resnet20(in_shape=(3, 32, 32), classes=10)
    >>> sum(p.numel() for p in model.parameters())  # 0.27 million, as published
    269722
    """
    return _stack("resnet20", in_shape, classes, width, stages=(3, 3, 3), shortcut=_PaddedShortcut)


def build_resnet56(*, in_shape: Sequence[int], classes: int, width: int = 16) -> nn.Module:
    """Return the ResNet-56 of He et al. (2016): nine blocks a stage.

    All arguments and errors are those of `build_resnet20`.

    >>> model = build_resnet56(in_shape=(3, 32, 32), classes=10)
    >>> sum(p.numel() for p in model.parameters())  # 0.85 million, as published
    853018
    """
    return _stack("resnet56", in_shape, classes, width, stages=(9, 9, 9), shortcut=_PaddedShortcut)


def build_resnet18(*, in_shape: Sequence[int], classes: int, width: int = 64) -> nn.Module:
    """Return ResNet-18 (He et al. 2016) as it is used on small images: a 3x3 first convolution.

    Four stages of two residual blocks with `width` to 8·`width` channels; where the shape changes
    the shortcut is a 1x1 convolution (option B).

    Args:
        in_shape: (channels, height, width) of one image; sides of at least 8.
        classes: number of outputs.
        width: channels of the first stage.

    Raises:
        InvalidArgumentError: as `build_resnet20`.

    >>> model = build_resnet18(in_shape=(3, 32, 32), classes=10)
    >>> sum(p.numel() for p in model.parameters())  # 11.17 million
    11173962
    """
    return _stack(
        "resnet18", in_shape, classes, width, stages=(2, 2, 2, 2), shortcut=_projected_shortcut
    )


def _stack(
    name: str,
    in_shape: Sequence[int],
    classes: int,
    width: int,
    *,
    stages: Sequence[int],
    shortcut: Callable[[int, int, int], nn.Module],
) -> nn.Module:
    """Return a network with so many blocks in each stage; each stage doubles the channels."""
    image_channels = check_image(name, in_shape, side=2 ** (len(stages) - 1))
    check_count("width", width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(image_channels, width, 3, padding=1, bias=False),
        batchnorm=nn.BatchNorm2d(width),
        activation=nn.ReLU(),
    )
    channels = width
    for stage, count in enumerate(stages):
        out, blocks = width * 2**stage, []
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            changes = stride > 1 or channels != out
            way = shortcut(channels, out, stride) if changes else nn.Identity()
            blocks.append(_ResidualBlock(channels, out, stride=stride, shortcut=way))
            channels = out
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels, check_count("classes", classes))
    return nn.Sequential(layers)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, *, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.batchnorm1 = nn.BatchNorm2d(out)
        self.activation1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.batchnorm2 = nn.BatchNorm2d(out)
        self.shortcut = shortcut
        self.activation2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation1(self.batchnorm1(self.conv1(x)))
        y = self.batchnorm2(self.conv2(y))
        return self.activation2(y + self.shortcut(x))


class _PaddedShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that come new (option A)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = out - channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]  # [B, C, H, W] -> [B, C, H/2, W/2]
        before = self.new_channels // 2  # zeros on both sides, as in common code for option A
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


def _projected_shortcut(channels: int, out: int, stride: int) -> nn.Module:
    """Return a 1x1 convolution with BatchNorm (option B)."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, out, 1, stride=stride, bias=False),
            batchnorm=nn.BatchNorm2d(out),
        )
    )
