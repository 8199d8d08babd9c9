"""What quantities, axes and directions are called in pictures of surfaces."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from flatkit.landscape.directions import DIRECTIONS, kind_named
from flatkit.landscape.directions.kind import Kind, about
from flatkit.landscape.surface import Surface
from flatkit.render.notation import significant
from flatkit.render.samples import coarse, over_surfaces

_QUANTITIES: Mapping[str, str] = {
    "loss": "loss",
    "gradient_norm": "gradient norm ‖∇L‖",
    "accuracy": "accuracy (%)",
    "top_eigenvalue": "top eigenvalue λmax",
}
_STATISTICS = {
    "reestimate": "BatchNorm statistics estimated again at every point",
    "interpolate": "BatchNorm statistics interpolated",
}


def quantities_of(surfaces: Sequence[Surface]) -> list[str]:
    """Return what can be drawn of the surfaces: training first, then test.

    >>> quantities_of([Surface({"t": [0.0, 1.0]}, {"test_loss": [1, 2], "loss": [1, 2]})])
    ['loss', 'test_loss']
    """
    known = [prefix + name for prefix in ("", "test_") for name in _QUANTITIES]
    return [name for name in known if any(name in s.quantities for s in surfaces)]


def quantity_label(quantity: str) -> str:
    """Return the label of an axis or bar of colours.

    >>> quantity_label("test_accuracy")
    'accuracy (%), test data'
    """
    name = quantity.removeprefix("test_")
    return _QUANTITIES[name] + (", test data" if quantity != name else "")


def in_units(surface: Surface, quantity: str) -> Any:
    """Return the values in the units of the label; a surface without the quantity has none.

    >>> in_units(Surface({"t": [0.0, 1.0]}, {"accuracy": [0.5, 1.0]}), "accuracy").tolist()
    [50.0, 100.0]
    """
    # Files hold shares in [0, 1], pictures show percent.
    factor = 100.0 if "accuracy" in quantity else 1.0
    return factor * surface.quantities[quantity]


def kind_of(surface: Surface) -> str:
    """Return the kind of the directions, a name of `flatkit.landscape.directions.DIRECTIONS`.

    >>> kind_of(Surface({"t": [0.0, 1.0]}, {}, {"directions": {"kind": "pca"}}))
    'pca'
    """
    return str(about(surface).get("kind", "random"))


def directions_of(surface: Surface) -> Kind:
    """Return what is known of the kind of the directions.

    A kind of a package that is not installed here is labelled as given vectors are.

    >>> directions_of(Surface({"t": [0.0, 1.0]}, {}, {"directions": {"kind": "toy"}})).name
    'given'
    """
    kind = kind_of(surface)
    return kind_named(kind if kind in DIRECTIONS.names else "given")


def axis_label(surface: Surface, number: int) -> str:
    """Return the label of an axis, with what a step means.

    >>> directions = {"kind": "eigenvectors", "norms": [1.0], "eigenvalues": [3.21]}
    >>> axis_label(Surface({"t": [0.0, 1.0]}, {}, {"directions": directions}), 0)
    'along eigenvector 1  (λ = 3.21)'
    """
    return directions_of(surface).axis_label(surface, number, significant)


def common_label(lines: Sequence[Surface]) -> str:
    """Return the label of an axis that several lines share.

    >>> lines = [Surface({"t": [0, 1]}, {}, {"directions": {"norms": [n]}}) for n in (2.0, 3.0)]
    >>> common_label(lines)
    'step t  (‖d‖ = 2.00 to 3.00)'
    """
    # Lines of one direction, as between two checkpoints, have one label.
    labels = {axis_label(line, 0) for line in lines}
    if len(labels) > 1:
        labels = {directions_of(line).shared_label(lines, significant) for line in lines}
    return labels.pop() if len(labels) == 1 else "step t"


def common_ranges(planes: Sequence[Surface]) -> dict[str, tuple[float, float]]:
    """Return the range of each axis that holds all the planes: a flatter one then looks flatter.

    >>> planes = [Surface({"x": [-r, r], "y": [0, 1]}, {}) for r in (1.0, 2.0)]
    >>> common_ranges(planes)
    {'x': (-2.0, 2.0), 'y': (0.0, 1.0)}
    """
    return {
        name: (
            float(min(plane.axes[name].min() for plane in planes)),
            float(max(plane.axes[name].max() for plane in planes)),
        )
        for name in ("x", "y")
    }


def explanation(surfaces: Sequence[Surface]) -> str:
    """Return the footnote: along what, what stands still, what was interpolated, the samples.

    >>> said = {"kind": "random", "normalization": "filter", "one_dimensional": "zero"}
    >>> explanation([Surface({"t": [0.0, 1.0]}, {}, {"directions": said})])
    'along a random filter-normalised direction d; biases and BatchNorm parameters stay'
    """
    # Files of several commands may stand side by side: what holds of some is said of these alone.
    told: dict[str, list[str]] = {}
    for surface in surfaces:
        told.setdefault("; ".join(_made(surface)), []).append(surface.name)
    parts = list(told)
    if len(told) > 1:
        parts = [f"{', '.join(names)}: {text}" for text, names in told.items()]
    measured = sum(int(surface.measured.sum()) for surface in surfaces)
    everything = sum(surface.measured.size for surface in surfaces)
    if measured < everything:
        parts.append(f"{measured} of {everything} points measured, the others interpolated")
    parts += _roundings(surfaces)
    ended = coarse(str(surface.header.get("status", "")) for surface in surfaces)
    return "; ".join(parts) + ended + over_surfaces(surfaces)


def _made(surface: Surface) -> list[str]:
    """Return in words along what a surface goes, and what stands still or moves along."""
    parts = [directions_of(surface).footnote(surface, significant)]
    if about(surface).get("one_dimensional") == "zero":
        parts.append("biases and BatchNorm parameters stay")
    statistics = surface.header.get("statistics")
    return [*parts, _STATISTICS[statistics]] if statistics in _STATISTICS else parts


def _roundings(surfaces: Sequence[Surface]) -> list[str]:
    """Return by how much 16 bits may have put off what is drawn, at most, where they may have."""
    found: list[str] = []
    for name in quantities_of(surfaces):
        own = [s for s in surfaces if f"{name}_rounding" in s.quantities]
        known = [x for s in own for x in in_units(s, f"{name}_rounding").ravel() if isfinite(x)]
        if known:
            found.append(f"{name.replace('_', ' ')} ± {significant(float(max(known)), 2)}")
    return [f"rounding to 16 bits at most: {', '.join(found)}"] if found else []


def tick_text(value: float) -> str:
    """Return a round number without zeros that say nothing.

    >>> tick_text(0.3), tick_text(0.00001), tick_text(250000.0)
    ('0.3', '1e-5', '250000')
    """
    text = f"{value:.6g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
