"""Residual networks for small images, as in the CIFAR experiments of He et al. (2016)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError

_BLOCKS = 3
"""Residual blocks a stage: 6·3 + 2 = 20 layers."""


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
    if len(in_shape) != 3 or min(in_shape[1:]) < 4:
        raise InvalidArgumentError(
            "the resnet20 needs in_shape (channels, height, width) with sides of at least 4, "
            f"got {tuple(in_shape)}; the mlp takes samples of any shape"
        )
    check_count("width", width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(check_count("in_shape", in_shape[0]), width, 3, padding=1, bias=False),
        batchnorm=nn.BatchNorm2d(width),
        activation=nn.ReLU(),
    )
    channels = width
    for stage, factor in enumerate((1, 2, 4), start=1):
        blocks = []
        for number in range(_BLOCKS):
            stride = 2 if stage > 1 and number == 0 else 1
            blocks.append(_ResidualBlock(channels, width * factor, stride=stride))
            channels = width * factor
        layers[f"layer{stage}"] = nn.Sequential(*blocks)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels, check_count("classes", classes))
    return nn.Sequential(layers)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.batchnorm1 = nn.BatchNorm2d(out)
        self.activation1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.batchnorm2 = nn.BatchNorm2d(out)
        self.shortcut = _Shortcut(out - channels, stride) if stride > 1 else nn.Identity()
        self.activation2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation1(self.batchnorm1(self.conv1(x)))
        y = self.batchnorm2(self.conv2(y))
        return self.activation2(y + self.shortcut(x))


class _Shortcut(nn.Module):
    """Every second pixel, and zeros for the channels that come new."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]  # [B, C, H, W] -> [B, C, H/2, W/2]
        before = self.new_channels // 2
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
