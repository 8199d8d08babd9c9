"""What quantities, axes and directions are called in pictures of surfaces."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatkit.landscape.surface import Surface
from flatkit.render.notation import significant

_QUANTITIES: Mapping[str, str] = {
    "loss": "loss",
    "gradient_norm": "gradient norm ‖∇L‖",
    "accuracy": "accuracy (%)",
    "top_eigenvalue": "top eigenvalue λmax",
}
_INDEX = "₁₂"
_SCALED = {
    "filter": "filter-normalised ",
    "layer": "layer-normalised ",
    "none": "unit ",
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
    factor = 100.0 if quantity.endswith("accuracy") else 1.0
    return factor * surface.quantities[quantity]


def kind_of(surface: Surface) -> str:
    """Return `random`, `eigenvectors`, `pca`, `checkpoints` or `given`.

    >>> kind_of(Surface({"t": [0.0, 1.0]}, {}, {"directions": {"kind": "pca"}}))
    'pca'
    """
    return str((surface.header.get("directions") or {}).get("kind", "random"))


def axis_label(surface: Surface, number: int) -> str:
    """Return the label of an axis, with what a step means.

    >>> directions = {"kind": "eigenvectors", "norms": [1.0], "eigenvalues": [3.21]}
    >>> axis_label(Surface({"t": [0.0, 1.0]}, {}, {"directions": directions}), 0)
    'along eigenvector 1  (λ = 3.21)'
    """
    about = surface.header.get("directions") or {}
    kind, plane = kind_of(surface), len(surface.axes) == 2
    if kind == "eigenvectors" and "eigenvalues" in about:
        value = significant(float(about["eigenvalues"][number]), 3)
        return f"along eigenvector {number + 1}  (λ = {value})"
    if kind == "pca" and "explained_variance" in about:
        share = 100 * float(about["explained_variance"][number])
        return f"principal axis {number + 1}  ({share:.3g} %)"
    if kind == "checkpoints" and plane:
        return f"distance ‖Δθ‖, axis {number + 1}"
    if kind == "checkpoints" and len(surface.header.get("markers", ())) == 2:
        first, second = (short_name(m["name"]) for m in surface.header["markers"])
        return f"step t  (0: {first}, 1: {second})"
    index = _INDEX[number] if plane else ""
    norms = about.get("norms") or ()
    length = (
        f"  (‖d{index}‖ = {significant(float(norms[number]), 3)})" if len(norms) > number else ""
    )
    return f"step t{index}{length}"


def _norms(surface: Surface) -> Sequence[float]:
    return (surface.header.get("directions") or {}).get("norms") or ()


def common_label(lines: Sequence[Surface]) -> str:
    """Return the label of an axis that several lines share.

    >>> lines = [Surface({"t": [0, 1]}, {}, {"directions": {"norms": [n]}}) for n in (2.0, 3.0)]
    >>> common_label(lines)
    'step t  (‖d‖ = 2.00 to 3.00)'
    """
    labels = {axis_label(line, 0) for line in lines}
    if len(labels) == 1:
        return labels.pop()
    kinds = {kind_of(line) for line in lines}
    if kinds == {"eigenvectors"}:
        return "along eigenvector 1 of each"
    norms = [float(x) for line in lines for x in _norms(line)[:1]]
    if kinds <= {"random", "given"} and len(norms) == len(lines):
        low, high = (significant(end(norms), 3) for end in (min, max))
        return f"step t  (‖d‖ = {low} to {high})"
    return "step t"


def explanation(surfaces: Sequence[Surface]) -> str:
    """Return the footnote: along what, what stands still, what was interpolated.

    >>> about = {"kind": "random", "normalization": "filter", "one_dimensional": "zero"}
    >>> explanation([Surface({"t": [0.0, 1.0]}, {}, {"directions": about})])
    'along a random filter-normalised direction d; biases and BatchNorm parameters stay'
    """
    first = surfaces[0]
    about = first.header.get("directions") or {}
    parts = [_along(first)]
    if about.get("one_dimensional") == "zero":
        parts.append("biases and BatchNorm parameters stay")
    statistics = first.header.get("statistics")
    if statistics in _STATISTICS:
        parts.append(_STATISTICS[statistics])
    measured = sum(int(surface.measured.sum()) for surface in surfaces)
    everything = sum(surface.measured.size for surface in surfaces)
    if measured < everything:
        parts.append(f"{measured} of {everything} points measured, the others interpolated")
    return "; ".join(parts)


def _along(surface: Surface) -> str:
    about = surface.header.get("directions") or {}
    kind, plane = kind_of(surface), len(surface.axes) == 2
    if kind == "eigenvectors":
        which = "unit eigenvectors" if plane else "a unit eigenvector"
        return f"distances ‖Δθ‖ along {which} of the Hessian"
    if kind == "pca":
        return _of_path(surface)
    if kind == "checkpoints":
        return "through three checkpoints" if plane else "from one checkpoint to the other"
    scaled = _SCALED.get(str(about.get("normalization")), "")
    word = "random " if kind == "random" else "given "
    if plane:
        return f"along {word}{scaled}directions d₁, d₂ of each run"
    return f"along a {word}{scaled}direction d"


def _of_path(surface: Surface) -> str:
    path = surface.header.get("path") or {}
    off = [float(x) for x in path.get("off_plane", ())]
    text = f"distances ‖Δθ‖ along principal axes of {len(off)} checkpoints, through the last"
    text += "; in brackets: of the variance"
    if off and max(off) > 0:
        where = "plane" if len(surface.axes) == 2 else "line"
        text += f"; the path is projected, its points lie up to {significant(max(off), 2)} off"
        text += f" the {where}"
    return text


def tick_text(value: float) -> str:
    """Return a round number without zeros that say nothing.

    >>> tick_text(0.3), tick_text(0.00001), tick_text(250000.0)
    ('0.3', '1e-5', '250000')
    """
    text = f"{value:.6g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def short_name(name: str) -> str:
    """Return what is left of a checkpoint's name in the middle of a picture.

    >>> short_name("gam/epoch-0010")
    'epoch 10'
    """
    last = Path(name).name
    epoch = last.removeprefix("epoch-")
    return f"epoch {int(epoch)}" if last != epoch and epoch.isdigit() else last
