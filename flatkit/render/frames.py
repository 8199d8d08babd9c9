"""Results and surfaces as tidy rows, and as what pandas and xarray hold."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from flatkit.comparison.readings import readings
from flatkit.errors import MissingDependencyError
from flatkit.landscape.surface import Surface
from flatkit.measures.reading import Reading
from flatkit.results.comparison import Comparison, Conditions, Entry
from flatkit.results.report import Report
from flatkit.results.result import Result

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import Dataset

COLUMNS = ("run", "group", "seed", "epoch", "measure", "rho", "split", "value", "error", "kind",
           "status")  # fmt: skip
"""Of tidy rows; `measure` is its name as in `measures=`, with more after it for further numbers of
the same measure, such as `first_order_flatness_over_rho_squared`; `kind` is that of the error."""


def tidy_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each number of each run, with the columns `COLUMNS`; None where unknown.

    Values are as a table shows them: accuracies in percent.

    >>> loss = Result("loss", 0.5, 0.0, settings={"split": "train"})
    >>> (row,) = tidy_rows(as_comparison(Report([loss], checkpoint={"name": "gam"})))
    >>> row["run"], row["measure"], row["split"], row["value"], row["kind"]
    ('gam', 'loss', 'train', 0.5, 'exact')
    """
    return [
        _row(entry, result, reading)
        for entry in comparison.entries
        for result in entry.report
        for reading in readings(result)
    ]


def as_comparison(shown: Comparison | Report | Result) -> Comparison:
    """Return what is shown as a comparison, a report or result as one run.

    >>> as_comparison(Result("trace", 8.0)).keys()
    ['model']
    """
    if isinstance(shown, Comparison):
        return shown
    report = Report([shown]) if isinstance(shown, Result) else shown
    name = str(report.checkpoint.get("name") or "model")
    return Comparison([Entry(name, name, report)])


def frame(shown: Any) -> "DataFrame":
    """Return the numbers of results, of a surface, or the tensors of a checkpoint, as a data frame.

    Results give `tidy_rows`; a result whose numbers stand on a grid, such as a slice or a density,
    gives a row a point. A surface gives a row a point; a checkpoint one a tensor; the outcome of a
    study `tidy_rows` with the condition before.

    Raises:
        MissingDependencyError: without the package pandas.
        ResultError: a result is malformed.

    >>> frame(Result("trace", 8.0, 0.5, "standard_error"))[["measure", "value", "error"]]
      measure  value  error
    0   trace    8.0    0.5
    """
    pandas = _package("pandas", "to_dataframe")
    if isinstance(shown, Surface):
        return pandas.DataFrame(_points(shown))
    if isinstance(shown, Result) and not readings(shown) and isinstance(shown.value, Mapping):
        return pandas.DataFrame(_grid(shown))
    if isinstance(shown, Comparison | Report | Result):
        return pandas.DataFrame(tidy_rows(as_comparison(shown)), columns=list(COLUMNS))
    if isinstance(shown, Conditions):
        return pandas.DataFrame(_conditions(shown), columns=["condition", *COLUMNS])
    tensors: Mapping[str, Any] = shown.state_dict
    rows = [(name, str(list(t.shape)), str(t.dtype), t.numel()) for name, t in tensors.items()]
    return pandas.DataFrame(rows, columns=("tensor", "shape", "dtype", "numbers"))


def dataset(surface: Surface) -> "Dataset":
    """Return a surface as a data set of xarray: steps as coordinates, the header as attributes.

    Raises:
        MissingDependencyError: without the package xarray.

    >>> found = dataset(Surface({"t": [0.0, 1.0]}, {"loss": [1.0, 2.0]}, {"name": "gam"}))
    >>> found["loss"].sel(t=1.0).item(), found.attrs["name"]
    (2.0, 'gam')
    """
    xarray = _package("xarray", "to_xarray")
    axes = tuple(reversed(list(surface.axes)))  # values [ny, nx]
    values = {**surface.quantities, "measured": surface.measured}
    return xarray.Dataset(
        {name: (axes, array) for name, array in values.items()},
        coords=dict(surface.axes),
        attrs=dict(surface.header),
    )


def _row(entry: Entry, result: Result, reading: Reading) -> dict[str, Any]:
    split = result.settings.get("split")
    training = entry.report.checkpoint.get("training")
    seed = training.get("seed") if isinstance(training, Mapping) else None
    name = reading.key.partition("[rho=")[0]
    return {
        "run": entry.name,
        "group": entry.group,
        "seed": entry.seed or (None if seed is None else str(seed)),
        # What a comparison says of a run comes before what its file says.
        "epoch": entry.report.checkpoint.get("epoch") if entry.epoch is None else entry.epoch,
        "measure": name.removeprefix(f"{split}_") if split else name,
        "rho": reading.rho,
        "split": split,
        "value": reading.value,
        "error": reading.error,
        "kind": reading.error_kind,
        "status": str(reading.status),
    }


def _conditions(study: Conditions) -> list[dict[str, Any]]:
    return [
        {"condition": condition, **row}
        for condition, comparison in study.comparisons.items()
        for row in tidy_rows(comparison)
    ]


def _points(surface: Surface) -> dict[str, Any]:
    names = list(reversed(list(surface.axes)))
    grids = numpy.meshgrid(*(surface.axes[name] for name in names), indexing="ij")
    steps = {name: grid.ravel() for name, grid in zip(names, grids, strict=True)}
    ordered = {name: steps[name] for name in surface.axes}
    values = {name: array.ravel() for name, array in surface.quantities.items()}
    return {**ordered, **values, "measured": surface.measured.ravel()}


def _grid(result: Result) -> dict[str, Any]:
    """Return the columns of a result on a grid: draws [D, n] below each other, planes by points."""
    if "x" in result.value and "y" in result.value:
        axes = {name: result.value[name] for name in ("x", "y")}
        rest = {k: numpy.array(v, dtype=float) for k, v in result.value.items() if k not in axes}
        return _points(Surface(axes, rest))
    length = max(len(values) for values in result.value.values() if isinstance(values, list))
    draws = [v for v in result.value.values() if v and isinstance(v[0], list)]
    if draws:
        count, points = len(draws[0]), len(draws[0][0])
        columns: dict[str, Any] = {"direction": numpy.repeat(numpy.arange(count), points)}
        for name, values in result.value.items():
            array = numpy.array(values, dtype=float)
            columns[name] = array.ravel() if array.ndim == 2 else numpy.tile(array, count)
        return columns
    return {
        **{name: values for name, values in result.value.items() if len(values) == length},
        **_errors(result, length),
    }


def _errors(result: Result, length: int) -> dict[str, Sequence[Any]]:
    found = result.error if isinstance(result.error, Mapping) else {}
    return {f"{n}_error": v for n, v in found.items() if isinstance(v, list) and len(v) == length}


def _package(name: str, method: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{method} needs the package {name}: pip install 'flatkit[frames]'"
        ) from error
