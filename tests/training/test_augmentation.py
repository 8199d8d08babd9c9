import numpy as np
import pytest
import torch

from flatkit.errors import InvalidArgumentError
from flatkit.training.augmentation import Augmentation, epoch_augmentation, padding


def moved(image: np.ndarray, shift: list[int], flip: bool) -> np.ndarray:
    """One image, padded, cropped and mirrored with NumPy."""
    up, left = padding(image.shape[1]), padding(image.shape[2])
    padded = np.pad(image, ((0, 0), (up, up), (left, left)))
    cut = padded[:, shift[0] : shift[0] + image.shape[1], shift[1] : shift[1] + image.shape[2]]
    return cut[:, :, ::-1] if flip else cut


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 8, 16)])
@pytest.mark.parametrize("kind", ["crop", "flip", "crop_flip"])
def test_every_image_is_cropped_and_mirrored_as_numpy_does_it(kind, shape):
    images = torch.randn(7, *shape)
    moves = epoch_augmentation(kind, samples=20, in_shape=shape, seed=1, epoch=2)
    assert moves is not None
    result = moves(images, start=13)
    middle = [padding(side) for side in shape[1:]]
    shifts = [middle] * 20 if moves.shifts is None else moves.shifts.tolist()
    flips = [False] * 20 if moves.flips is None else moves.flips.tolist()
    for index, image in enumerate(images.numpy()):
        at = 13 + index
        np.testing.assert_array_equal(result[index], moved(image, shifts[at], flips[at]))


def test_all_shifts_and_flips_occur_about_equally_often():
    moves = epoch_augmentation("crop_flip", samples=81_000, in_shape=(3, 32, 32), seed=0, epoch=1)
    assert moves is not None and moves.shifts is not None and moves.flips is not None
    counts = (moves.shifts[:, 0] * 9 + moves.shifts[:, 1]).bincount(minlength=81)
    assert counts.min() > 850
    assert counts.max() < 1150
    assert moves.flips.double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_the_moves_depend_on_seed_and_epoch_and_on_nothing_else():
    def shifts(seed: int, epoch: int):
        torch.manual_seed(seed * 7 + epoch)
        moves = epoch_augmentation("crop", samples=9, in_shape=(1, 32, 32), seed=seed, epoch=epoch)
        assert moves is not None and moves.shifts is not None
        return tuple(moves.shifts.flatten().tolist())

    assert shifts(0, 1) == shifts(0, 1)
    assert len({shifts(seed, epoch) for seed in range(3) for epoch in range(1, 4)}) == 9


def test_none_moves_nothing_and_samples_that_are_no_images_are_refused():
    assert epoch_augmentation("none", samples=3, in_shape=(5,), seed=0, epoch=1) is None
    with pytest.raises(InvalidArgumentError, match=r"augment crop needs images.*\(5,\)"):
        epoch_augmentation("crop", samples=3, in_shape=(5,), seed=0, epoch=1)


def test_images_keep_their_dtype_and_the_input_is_not_changed():
    images = torch.arange(32.0, dtype=torch.float64).view(2, 1, 4, 4)
    before = images.clone()
    moves = Augmentation(torch.tensor([[0, 2], [1, 1]]), torch.tensor([True, False]))
    result = moves(images, 0)
    assert result.dtype == torch.float64
    assert torch.equal(images, before)
    assert torch.equal(result[1], images[1])
