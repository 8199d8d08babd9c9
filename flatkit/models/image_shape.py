"""The check of the shape of an image that convolutional models share."""

from collections.abc import Sequence

from flatkit.checks import check_count
from flatkit.errors import InvalidArgumentError


def check_image(model: str, in_shape: Sequence[int], *, side: int) -> int:
    """Return the channels of an image shape (channels, height, width).

    Args:
        model: name, for the message.
        in_shape: the shape.
        side: the least height and width that the model can halve as often as it does.

    Raises:
        InvalidArgumentError: not the shape of an image, or one too small.

    >>> check_image("resnet20", (3, 32, 32), side=4)
    3
    """
    if len(in_shape) != 3 or min(in_shape[1:]) < side:
        raise InvalidArgumentError(
            f"the {model} needs in_shape (channels, height, width) with sides of at least {side}, "
            f"got {tuple(in_shape)}; the mlp takes samples of any shape"
        )
    return check_count("in_shape", in_shape[0])
