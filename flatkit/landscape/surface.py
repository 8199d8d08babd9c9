"""A surface: quantities on a grid of one or two axes, in one `.npz` file with a JSON header."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from flatkit.errors import ResultError
from flatkit.files.atomic import write_atomically
from flatkit.results.names import showable
from flatkit.results.showing import Shown, no_such
from flatkit.version import __version__

if TYPE_CHECKING:
    from xarray import Dataset

SCHEMA = 1
_HEADER, _MEASURED = "header", "measured"


@dataclass(frozen=True, repr=False)
class Surface(Shown):
    """Quantities at θ + t·d (one axis, `t`) or at θ + x·d₁ + y·d₂ (axes `x` and `y`).

    By name it is like a dict of the values of its quantities.

    Attributes:
        axes: name -> steps, in units of the direction: `{"t": [n]}` or `{"x": [nx], "y": [ny]}`.
        quantities: name -> values [n] or [ny, nx], so that `loss[j, i]` is at x[i], y[j]; infinite
            beyond the float range, NaN where the quantity is no number.
        measured: where a value was measured; elsewhere it was interpolated by refinement.
        header: what was measured and how, ready for JSON: `name`, `directions`, `objective`, and,
            where they exist, `markers` and `path` (points with their coordinates on the axes).

    Raises:
        ResultError: an axis or quantity has another shape.

    >>> surface = Surface({"t": [-1.0, 0.0, 1.0]}, {"loss": [2.0, 1.0, 2.0]})
    >>> surface.shape, bool(surface.measured.all())
    ((3,), True)
    >>> surface, surface["loss"].tolist()
    (<Surface surface: loss on 3 points>, [2.0, 1.0, 2.0])
    """

    axes: Mapping[str, Any]
    quantities: Mapping[str, Any]
    header: Mapping[str, Any] = field(default_factory=dict)
    measured: Any = None

    def __post_init__(self) -> None:
        """Make arrays of everything and hold their shapes against the axes."""
        axes = {name: numpy.asarray(steps, dtype=float) for name, steps in self.axes.items()}
        if tuple(axes) not in (("t",), ("x", "y")):
            raise ResultError(f"a surface has the axis t or the axes x, y; got {list(axes)}")
        # [ny, nx], as pictures and matrices have their rows from y.
        shape = tuple(len(steps) for steps in reversed(axes.values()))
        values = {name: numpy.asarray(v, dtype=float) for name, v in self.quantities.items()}
        measured = numpy.ones(shape, bool) if self.measured is None else self.measured
        for name, array in {**values, _MEASURED: numpy.asarray(measured, bool)}.items():
            if array.shape != shape:
                raise ResultError(f"{name} must have the shape {shape} of the axes: {array.shape}")
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "quantities", values)
        object.__setattr__(self, "measured", numpy.asarray(measured, bool))

    def __getitem__(self, name: str) -> Any:
        """Return the values of a quantity.

        Raises:
            UnknownNameError: it has none; the message names those that there are.
        """
        if name not in self.quantities:
            raise no_such(name, "quantity", self.quantities)
        return self.quantities[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.quantities)

    def __contains__(self, name: object) -> bool:
        return name in self.quantities

    def keys(self) -> list[str]:
        """Return the names of the quantities."""
        return list(self.quantities)

    def __repr__(self) -> str:
        """Return a line: of what, which quantities, on how many points."""
        size = " × ".join(str(n) for n in reversed(self.shape))
        return f"<Surface {self.name}: {', '.join(self.quantities)} on {size} points>"

    def to_xarray(self) -> "Dataset":
        """Return the quantities as a data set of xarray, with the steps as coordinates.

        Raises:
            MissingDependencyError: without the package xarray.

        >>> line = Surface({"t": [0.0, 1.0]}, {"loss": [2.0, 3.0]})
        >>> float(line.to_xarray()["loss"].sel(t=1.0))
        3.0
        """
        return import_module("flatkit.render.frames").dataset(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n,) or (ny, nx)."""
        return self.measured.shape

    @property
    def name(self) -> str:
        """What was looked at, as of `showable`."""
        return showable(str(self.header.get("name", "surface")))

    @property
    def lengths(self) -> list[float]:
        """The length ‖d‖ of each direction, so that a step t moves the weights by t·‖d‖."""
        directions = self.header.get("directions") or {}
        return [float(x) for x in directions.get("norms", [1.0] * len(self.axes))]

    @property
    def holds_centre(self) -> bool:
        """Whether 0 is a step of each axis: a range may lie beside the centre."""
        return all(bool((steps == 0).any()) for steps in self.axes.values())

    def at_centre(self, quantity: str) -> float:
        """Return a quantity at the steps nearest to 0."""
        axes = reversed(list(self.axes.values()))
        centre = tuple(int(numpy.abs(steps).argmin()) for steps in axes)
        return float(self.quantities[quantity][centre])

    def save(self, path: str | Path) -> Path:
        """Write one `.npz`, whole or not at all; it holds no pickle.

        Raises:
            OutputError: it cannot be written.
        """
        header = {"schema": SCHEMA, "flatkit": __version__, **self.header}
        # JSON has no infinities; where values may be infinite they are arrays.
        text = json.dumps(header, allow_nan=False, ensure_ascii=False)
        axes = {f"axis_{name}": steps for name, steps in self.axes.items()}
        arrays: dict[str, Any] = {**axes, **self.quantities, _MEASURED: self.measured}
        # Text, not an object, which only a pickle would hold.
        arrays[_HEADER] = numpy.array(text)
        return write_atomically(path, lambda file: numpy.savez_compressed(file, **arrays))


def load_surface(path: str | Path) -> Surface:
    """Read a saved surface.

    Raises:
        ResultError: the file is missing, cut short, or holds something else.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "line.npz"
    >>> _ = Surface({"t": [0.0, 1.0]}, {"loss": [1.0, float("inf")]}).save(path)
    >>> load_surface(path).quantities["loss"].tolist()
    [1.0, inf]
    """
    try:
        # Opened here, so that it is closed also where numpy gives up on it.
        with Path(path).open("rb") as stream, numpy.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop(_HEADER)))
        measured = arrays.pop(_MEASURED)
    except FileNotFoundError as error:
        raise ResultError(f"cannot read {path}: no such file") from error
    except KeyError as error:
        raise ResultError(f"{path} is no surface of flatkit: it has no {error}") from error
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ResultError(
            f"{path} is no whole surface file ({type(error).__name__}: it is cut short, or another "
            "kind of file); measure it again"
        ) from error
    if header.get("schema") != SCHEMA:
        raise ResultError(f"{path} has schema {header.get('schema')!r}; this flatkit reads 1")
    axes = {n[5:]: arrays.pop(n) for n in ("axis_t", "axis_x", "axis_y") if n in arrays}
    return Surface(axes, arrays, header, measured)
