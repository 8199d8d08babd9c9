"""Pyramidal residual networks (Han, Kim & Kim 2017)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError
from flatkit.models.image_shape import check_image


def build_pyramidnet(
    *, in_shape: Sequence[int], classes: int, depth: int = 110, alpha: int = 270
) -> nn.Module:
    """Return the additive PyramidNet of basic blocks: every block adds some channels.

    From 16 channels, `alpha` channels are added in equal parts over the 3·(depth - 2)/6 blocks
    (rounded after each), the first blocks of the second and third stage halve the image. A block
    is BatchNorm, convolution, BatchNorm, ReLU, convolution, BatchNorm; its shortcut is the mean
    over 2x2 pixels where the image is halved, and zeros for the new channels.

    Source: Han, Kim & Kim, Deep Pyramidal Residual Networks, CVPR 2017, figure 6d.

    Args:
        in_shape: (channels, height, width) of one image; even sides of at least 4.
        classes: number of outputs.
        depth: 6n + 2, such as 20 or 110.
        alpha: channels added in all.

    Raises:
        InvalidArgumentError: not an image, or one too small; a depth that is not 6n + 2.

    >>> model = build_pyramidnet(in_shape=(3, 32, 32), classes=10, alpha=48)
    >>> sum(p.numel() for p in model.parameters())  # 1.7 million, as published
    1772706
    """
    image_channels = check_image("pyramidnet", in_shape, side=4)
    # Stricter than other networks: the mean over 2x2 pixels leaves out a last odd row, and then no
    # longer fits the convolution beside it.
    if any(side % 4 for side in in_shape[1:]):
        raise InvalidArgumentError(
            f"the pyramidnet halves the image twice: its sides must be multiples of 4, "
            f"got {tuple(in_shape)}"
        )
    if check_count("depth", depth, minimum=8) % 6 != 2:
        raise InvalidArgumentError(f"depth must be 6n + 2, e.g. 20 or 110, got {depth}")
    check_count("alpha", alpha)
    blocks_a_stage = (depth - 2) // 6
    channels, exact = 16, 16.0
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(image_channels, channels, 3, padding=1, bias=False),
        batchnorm1=nn.BatchNorm2d(channels),
    )
    for stage in range(3):
        blocks = []
        for number in range(blocks_a_stage):
            exact += alpha / (3 * blocks_a_stage)  # summed before it is rounded, as in the source
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(_PyramidBlock(channels, round(exact), stride=stride))
            channels = round(exact)
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    layers["batchnorm2"] = nn.BatchNorm2d(channels)
    layers["activation"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels, check_count("classes", classes))
    return nn.Sequential(layers)


class _PyramidBlock(nn.Module):
    """No activation before the first convolution and none after the sum."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.batchnorm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.batchnorm2 = nn.BatchNorm2d(out)
        self.activation = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.batchnorm3 = nn.BatchNorm2d(out)
        self.halve = nn.AvgPool2d(2) if stride > 1 else nn.Identity()
        self.new_channels = out - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.batchnorm2(self.conv1(self.batchnorm1(x))))
        y = self.batchnorm3(self.conv2(y))
        # [B, C, H, W]: zeros after the channels that are there, none around the pixels.
        return y + F.pad(self.halve(x), (0, 0, 0, 0, 0, self.new_channels))
