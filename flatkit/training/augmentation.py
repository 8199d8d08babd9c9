"""Random crops and flips of images, a function of seed and epoch alone, on the data's device."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flatkit.errors import InvalidArgumentError

_PART = 8
"""Images are padded by this part of their sides: 4 pixels of 32, as is usual for CIFAR."""


@dataclass(frozen=True, eq=False)
class Augmentation:
    """How every image of an epoch is moved, in the order in which the epoch meets them.

    A shift by (dy, dx) is a crop of the image padded with zeros: after standardisation, zero is
    the mean colour.

    Attributes:
        shifts: int64, shape [N, 2], or None.
        flips: bool, shape [N], or None: which images are mirrored, left to right.
    """

    shifts: Tensor | None
    flips: Tensor | None

    def __call__(self, images: Tensor, start: int) -> Tensor:
        """Return images [B, C, H, W] moved as the epoch's images `start` to `start + B`.

        Cost: one gather of the batch; nothing leaves the device.

        >>> flip = Augmentation(None, torch.tensor([False, True]))
        >>> flip(torch.tensor([[[[1.0, 2.0]]]]), start=1)
        tensor([[[[2., 1.]]]])
        """
        count, channels, height, width = images.shape
        rows = torch.arange(height, device=images.device).repeat(count, 1)  # [B, H]
        columns = torch.arange(width, device=images.device).repeat(count, 1)  # [B, W]
        if self.flips is not None:
            # By place in the epoch, not by sample: the moves are drawn in the order of the batches.
            mirrored = self.flips[start : start + count, None]
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.shifts is not None:
            up, left = padding(height), padding(width)
            images = F.pad(images, (left, left, up, up))
            shifts = self.shifts[start : start + count]
            rows, columns = rows + shifts[:, :1], columns + shifts[:, 1:]
        index = rows[:, :, None] * images.shape[3] + columns[:, None, :]  # [B, H, W]
        # One index for all colours, which move together.
        index = index.view(count, 1, -1).expand(-1, channels, -1)
        return images.flatten(2).gather(2, index).view(count, channels, height, width)


def padding(side: int) -> int:
    """Return by how many pixels a side is padded at each end.

    >>> padding(32), padding(28), padding(8)
    (4, 3, 1)
    """
    return max(1, side // _PART)


def check_augmentable(kind: str, in_shape: tuple[int, ...]) -> None:
    """Refuse to move what is no image.

    Raises:
        InvalidArgumentError: the samples are not images [C, H, W], and the kind is not `none`.
    """
    if kind != "none" and len(in_shape) != 3:
        raise InvalidArgumentError(
            f"augment {kind} needs images (channels, height, width), got samples {in_shape}; "
            "choose augment none"
        )


def epoch_augmentation(
    kind: str,
    *,
    samples: int,
    in_shape: tuple[int, ...],
    seed: int,
    epoch: int,
    device: torch.device | None = None,
) -> Augmentation | None:
    """Return the moves of one epoch, or None for the kind `none`.

    They depend on no state, so a resumed run draws what it would have drawn.

    Args:
        kind: `none`, `flip`, `crop` or `crop_flip`.
        samples: in the epoch.
        in_shape: of one sample.
        seed: of the run.
        epoch: from 1.
        device: of the images.

    Raises:
        InvalidArgumentError: the samples are not images [C, H, W].

    >>> moves = epoch_augmentation("crop", samples=5, in_shape=(3, 32, 32), seed=0, epoch=1)
    >>> moves.shifts.shape, moves.flips
    (torch.Size([5, 2]), None)
    """
    if kind == "none":
        return None
    check_augmentable(kind, in_shape)
    generator = np.random.default_rng([seed, epoch, 1])  # batches use [seed, epoch]
    # 0 to twice the padding; the image as it was lies in the middle.
    spans = [2 * padding(side) + 1 for side in in_shape[1:]]
    # Both are drawn whatever the kind: `crop` and `crop_flip` shift alike.
    shifts = torch.from_numpy(generator.integers(0, spans, (samples, 2))).to(device)
    flips = torch.from_numpy(generator.random(samples) < 0.5).to(device)
    return Augmentation(
        shifts if kind.startswith("crop") else None, flips if kind.endswith("flip") else None
    )
