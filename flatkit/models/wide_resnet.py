"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError
from flatkit.models.image_shape import check_image


def build_wide_resnet(
    *,
    in_shape: Sequence[int],
    classes: int,
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0.0,
) -> nn.Module:
    """Return WRN-`depth`-`widen`, with BatchNorm and ReLU before each convolution.

    A 3x3 convolution to 16 channels, three stages of (depth - 4) / 6 blocks with 16, 32 and 64
    times `widen` channels (the last two halve the image), BatchNorm, a global mean, a linear layer.

    Source: Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016, table 1 (block B(3,3)).

    Args:
        in_shape: (channels, height, width) of one image; sides of at least 4.
        classes: number of outputs.
        depth: 6n + 4, such as 10, 16, 28 or 40.
        widen: the widening factor k.
        dropout: between the convolutions of a block, in [0, 1).

    Raises:
        InvalidArgumentError: not an image, or one too small; a depth that is not 6n + 4.

    >>> model = build_wide_resnet(in_shape=(3, 32, 32), classes=10, depth=16, widen=4)
    >>> sum(p.numel() for p in model.parameters())
    2748890
    """
    image_channels = check_image("wide_resnet", in_shape, side=4)
    if check_count("depth", depth, minimum=10) % 6 != 4:
        raise InvalidArgumentError(f"depth must be 6n + 4, e.g. 16, 28 or 40, got {depth}")
    check_count("widen", widen)
    # 16 in the first convolution whatever `widen` is, as in table 1.
    channels = 16
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(image_channels, channels, 3, padding=1, bias=False)
    )
    for stage in range(3):
        out, blocks = 16 * widen * 2**stage, []
        for number in range((depth - 4) // 6):
            stride = 2 if stage > 0 and number == 0 else 1
            blocks.append(_PreactivatedBlock(channels, out, stride=stride, dropout=dropout))
            channels = out
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    layers["batchnorm"] = nn.BatchNorm2d(channels)
    layers["activation"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels, check_count("classes", classes))
    return nn.Sequential(layers)


class _PreactivatedBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice; a 1x1 convolution as shortcut where the shape changes.

    That shortcut starts from the activated input, as in the source.
    """

    def __init__(self, channels: int, out: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.batchnorm1 = nn.BatchNorm2d(channels)
        self.activation1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.batchnorm2 = nn.BatchNorm2d(out)
        self.activation2 = nn.ReLU()
        # Between the convolutions, as section 2.4 of the source has it.
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        changes = stride > 1 or channels != out
        self.shortcut = nn.Conv2d(channels, out, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation1(self.batchnorm1(x))
        y = self.activation2(self.batchnorm2(self.conv1(active)))
        y = self.conv2(self.dropout(y))
        return y + (x if self.shortcut is None else self.shortcut(active))
