"""The figure of the loss on random planes of analysed runs."""

from collections.abc import Mapping, Sequence

import numpy
from matplotlib.figure import Figure

from flatkit.errors import NothingToDrawError, ResultError
from flatkit.landscape.surface import Surface
from flatkit.render.figures.maps import map_figure
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.result import Result


def plane_figure(comparison: Comparison) -> Figure:
    """Draw the loss on the plane of each run as filled contours, on ONE scale of colours.

    The first direction runs to the right and the second upwards: `loss[j][i]` is at (x[i], y[j]).
    The star is the checkpoint. Hatched: the loss is infinite or no number there.

    Raises:
        NothingToDrawError: no run has a plane with a finite loss.

    >>> from flatkit.results.comparison import Entry
    >>> from flatkit.results.report import Report
    >>> value = {"x": [0.0, 1.0, 2.0], "y": [0.0, 1.0], "loss": [[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]}
    >>> report = Report([Result("loss_plane", value, 0.0)])
    >>> figure = plane_figure(Comparison([Entry("sgd", "sgd", report)]))
    >>> [axis.get_title() for axis in figure.axes][:1]
    ['sgd']
    """
    planes = planes_of(comparison)
    if not _any_finite(planes):
        raise NothingToDrawError(
            "no run holds a plane with a finite loss; measure it with `measures` loss_plane"
        )
    return map_figure(planes)


def planes_of(comparison: Comparison) -> list[Surface]:
    """Return the plane of each run that has one.

    Raises:
        ResultError: a plane is malformed.

    >>> planes_of(Comparison([]))
    []
    """
    return [
        _plane(entry, result)
        for entry in comparison.entries
        if (result := entry.report.find("loss_plane")) is not None
    ]


def _any_finite(planes: Sequence[Surface]) -> bool:
    return any(numpy.isfinite(plane.quantities["loss"]).any() for plane in planes)


def _plane(entry: Entry, result: Result) -> Surface:
    try:
        return _surface(entry, result)
    except (KeyError, TypeError, ValueError) as error:
        # It comes from a file: what is not of its shape is the file's fault.
        raise ResultError(f"cannot draw the plane: malformed result ({error!r})") from error


def _surface(entry: Entry, result: Result) -> Surface:
    settings = result.settings
    directions = {
        "kind": "random",
        "norms": settings.get("direction_norms") or (),
        "normalization": settings.get("normalization"),
        "one_dimensional": settings.get("one_dimensional"),
    }
    values = {"loss": numpy.array(result.value["loss"], dtype=float)}  # None becomes NaN
    if isinstance(result.error, Mapping):  # of 16 bits
        values["loss_rounding"] = numpy.array(result.error["loss"], dtype=float)
    return Surface(
        {"x": result.value["x"], "y": result.value["y"]},
        values,
        {
            "name": entry.name,
            "directions": directions,
            "status": result.status,
            "objective": {"train": entry.report.objective},
        },
    )
