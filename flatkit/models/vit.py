"""A small vision transformer (Dosovitskiy et al. 2021) for small images."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError
from flatkit.models.image_shape import check_image


def build_vit(
    *,
    in_shape: Sequence[int],
    classes: int,
    patch: int = 4,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
) -> nn.Module:
    """Return a pre-norm transformer over patches of the image, with a mean over the tokens.

    Patches become tokens by a convolution; learned positions are added; each of `depth` blocks is
    LayerNorm, attention, LayerNorm, a GELU layer of 4·`width`; then LayerNorm, the mean over the
    tokens (instead of a class token), a linear layer. There is no dropout.

    Args:
        in_shape: (channels, height, width) of one image.
        classes: number of outputs.
        patch: side of a patch; divides both sides of the image.
        width: of a token; a multiple of `heads`.
        depth: blocks.
        heads: of the attention.

    Raises:
        InvalidArgumentError: a size does not divide another as it must, or is below 1.

    >>> model = build_vit(in_shape=(3, 8, 8), classes=10, width=8, depth=1, heads=2)
    >>> model(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 10])
    """
    channels = check_image("vit", in_shape, side=check_count("patch", patch))
    height, side = in_shape[1:]
    if height % patch or side % patch:
        raise InvalidArgumentError(
            f"patch must divide the sides of the image, got {patch} for {height}x{side}"
        )
    if check_count("width", width) % check_count("heads", heads):
        raise InvalidArgumentError(f"width must be a multiple of heads, got {width} and {heads}")
    blocks = [_Block(width, heads) for _ in range(check_count("depth", depth))]
    return nn.Sequential(
        OrderedDict(
            tokens=_Tokens(channels, width, patch, (height // patch) * (side // patch)),
            blocks=nn.Sequential(*blocks),
            norm=nn.LayerNorm(width),
            pool=_TokenMean(),
            output=nn.Linear(width, check_count("classes", classes)),
        )
    )


class _Tokens(nn.Module):
    """Patches as tokens, with learned positions."""

    def __init__(self, channels: int, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        # 0.02 as of BERT's embeddings (Devlin et al. 2019) and of the source.
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        # A convolution whose stride is its width cuts the image into patches and maps each.
        return self.patches(x).flatten(2).mT + self.positions  # [B, C, H, W] -> [B, T, width]


class _Block(nn.Module):
    """Attention and a GELU layer, each around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)  # four times as wide as of Vaswani et al. 2017
        self.activation = nn.GELU()
        self.back = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.back(self.activation(self.hidden(self.norm2(x))))


class _Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.back = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.query_key_value(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # 3 of [B, heads, T, width / heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.back(mixed.transpose(1, 2).reshape(batch, tokens, width))


class _TokenMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)  # [B, T, width] -> [B, width]
