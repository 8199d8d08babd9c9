"""What a kind of directions says of itself: how it is made, its usual range, its labels, its help.

A kind imports torch where it makes directions, and not at the top of its file: pictures of saved
surfaces take their labels from it without torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from flatkit.landscape.surface import Surface

if TYPE_CHECKING:
    from flatkit.landscape.settings import LandscapeSettings
    from flatkit.landscape.subspaces import Subspace
    from flatkit.landscape.waypoints import Waypoint
    from flatkit.objective.function import Objective

NumberText = Callable[[float, int], str]
"""(number, digits) -> how it is written in a label."""

_INDEX = "₁₂"
_SCALED = {"filter": "filter-normalised ", "layer": "layer-normalised ", "none": "unit "}


@dataclass(frozen=True, eq=False)
class Request:
    """What directions are asked for.

    Attributes:
        objective: at the centre.
        settings: of the landscape.
        waypoints: the checkpoints in order, where one surface goes through all of them.
    """

    objective: "Objective"
    settings: "LandscapeSettings"
    waypoints: Sequence["Waypoint"] = ()


class Kind(ABC):
    """A kind of directions; by itself one that is looked at around each checkpoint.

    Attributes:
        name: in settings, files and on the command line.
        help: a line of the command's help.
        can_be_scaled: whether `normalization` and `one_dimensional` apply.
        takes_vectors: whether `vectors` names a file with them.
        lengths: whether a step of 1 is a length of 1 in parameter space.
        moves_buffers: whether running statistics can move along, between checkpoints.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    can_be_scaled: ClassVar[bool] = False
    takes_vectors: ClassVar[bool] = False
    lengths: ClassVar[bool] = False
    moves_buffers: ClassVar[bool] = False

    @abstractmethod
    def make(self, request: Request) -> "Subspace":
        """Return the line or plane."""

    def usual_range(self, subspace: "Subspace", number: int) -> tuple[float, float]:
        """Return the first and last step along an axis where none are given."""
        return -1.0, 1.0

    def axis_label(self, surface: Surface, number: int, text: NumberText) -> str:
        """Return the label of an axis, with what a step means."""
        index = _INDEX[number] if is_plane(surface) else ""
        norms = about(surface).get("norms") or ()
        if len(norms) <= number:
            return f"step t{index}"
        return f"step t{index}  (‖d{index}‖ = {text(float(norms[number]), 3)})"

    def shared_label(self, lines: Sequence[Surface], text: NumberText) -> str:
        """Return the label of an axis that several lines share, where their own labels differ."""
        # Of a line there is one direction.
        norms = [float(x) for line in lines for x in (about(line).get("norms") or ())[:1]]
        if self.lengths or len(norms) < len(lines):
            return "step t"
        return f"step t  (‖d‖ = {text(min(norms), 3)} to {text(max(norms), 3)})"

    def footnote(self, surface: Surface, text: NumberText) -> str:
        """Return in words along what a surface goes."""
        scaled = _SCALED.get(str(about(surface).get("normalization")), "")
        if is_plane(surface):
            return f"along {self.name} {scaled}directions d₁, d₂ of each run"
        return f"along a {self.name} {scaled}direction d"


class ThroughKind(Kind):
    """A kind of which one surface goes through all the checkpoints.

    Attributes:
        centre: whose data, loss and frozen parameters are taken: the first (0) or the last (-1).
    """

    centre: ClassVar[int] = 0

    @abstractmethod
    def check_count(self, count: int, dimensions: int) -> None:
        """Refuse too few or too many checkpoints, before any is read.

        Raises:
            InvalidArgumentError: another number is needed.
        """

    @abstractmethod
    def surface_name(self, waypoints: Sequence["Waypoint"], run: str) -> str:
        """Return what the surface is called.

        Args:
            waypoints: the checkpoints.
            run: the folder of the central one.
        """

    def usual_range(self, subspace: "Subspace", number: int) -> tuple[float, float]:
        """Return a range around all the checkpoints."""
        path = subspace.path
        places = [marker["at"] for marker in subspace.markers] if path is None else path["at"]
        columns = list(zip(*places, strict=True))
        # One margin for all axes: a flat trajectory still shows what lies beside it.
        margin = _MARGIN * max(max(column) - min(column) for column in columns)
        return min(columns[number]) - margin, max(columns[number]) + margin


_MARGIN = 0.2
"""Of the extent of the checkpoints, added on every side."""


def about(surface: Surface) -> Mapping[str, Any]:
    """Return what a surface says of its directions.

    >>> about(Surface({"t": [0.0, 1.0]}, {}, {"directions": {"kind": "pca"}}))
    {'kind': 'pca'}
    """
    return surface.header.get("directions") or {}


def is_plane(surface: Surface) -> bool:
    """Whether a surface has two axes.

    >>> is_plane(Surface({"t": [0.0, 1.0]}, {}))
    False
    """
    return len(surface.axes) == 2


def short_name(name: str) -> str:
    """Return what is left of a checkpoint's name in the middle of a picture.

    >>> short_name("gam/epoch-0010")
    'epoch 10'
    """
    last = Path(name).name
    epoch = last.removeprefix("epoch-")
    return f"epoch {int(epoch)}" if last != epoch and epoch.isdigit() else last
