"""Surfaces for other programs: CSV, HDF5 (netCDF 4 dimensions) and legacy VTK."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy

from flatkit.checks import check_choice
from flatkit.errors import MissingDependencyError
from flatkit.files.atomic import write_atomically
from flatkit.landscape.surface import Surface


def export_surface(surface: Surface, path: str | Path, kind: str) -> Path:
    """Write a surface as `csv`, `h5` or `vtk`, whole or not at all.

    `pandas.read_csv(path)` reads the first, `xarray.open_dataset(path, engine="h5netcdf")` the
    second with its dimensions, ParaView the third (a rectilinear grid with point data).

    Raises:
        InvalidArgumentError: another kind.
        MissingDependencyError: `h5` without the package h5py.
        OutputError: the file cannot be written.

    >>> import tempfile
    >>> line = Surface({"t": [0.0, 1.0]}, {"loss": [1.0, float("inf")]})
    >>> path = export_surface(line, Path(tempfile.mkdtemp()) / "a.csv", "csv")
    >>> print(path.read_text())
    t,loss,measured
    0.0,1.0,True
    1.0,inf,True
    """
    content = EXPORTS[check_choice("export", kind, EXPORTS)](surface)
    return write_atomically(path, lambda stream: stream.write(content))


def _csv(surface: Surface) -> bytes:
    columns = {**_points(surface), **surface.quantities, "measured": surface.measured}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.ravel().tolist() for column in columns.values()), strict=True))
    return text.getvalue().encode()


def _points(surface: Surface) -> dict[str, numpy.ndarray]:
    """Return the coordinates of every point, each in the shape of the surface."""
    # As the values lie: a row for each y, and x fastest.
    grids = numpy.meshgrid(*surface.axes.values(), indexing="xy")
    return dict(zip(surface.axes, grids, strict=True))


def _h5(surface: Surface) -> bytes:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError(
            "HDF5 needs the package h5py: pip install 'flatkit[hdf5]', or export csv"
        ) from error
    memory = io.BytesIO()
    # In this order, not in that of the alphabet.
    with h5py.File(memory, "w", track_order=True) as file:
        file.attrs["header"] = json.dumps(dict(surface.header), ensure_ascii=False)
        for name, steps in surface.axes.items():
            file.create_dataset(name, data=steps).make_scale(name)
        for name, values in {**surface.quantities, "measured": surface.measured}.items():
            kept = values.astype(numpy.uint8) if values.dtype == bool else values
            dataset = file.create_dataset(name, data=kept)
            for dimension, axis in enumerate(reversed(list(surface.axes))):
                dataset.dims[dimension].attach_scale(file[axis])
    return memory.getvalue()


def _vtk(surface: Surface) -> bytes:
    """Legacy VTK 3.0, binary (big-endian), where infinities survive."""
    axes = [*surface.axes.values(), *[numpy.zeros(1)] * (3 - len(surface.axes))]
    out = io.BytesIO()
    # The format has 256 characters for this line.
    title = surface.name.encode("ascii", "replace").decode().replace("\n", " ")[:200]
    lengths = " ".join(str(len(axis)) for axis in axes)
    out.write(f"# vtk DataFile Version 3.0\n{title}\nBINARY\nDATASET RECTILINEAR_GRID\n".encode())
    out.write(f"DIMENSIONS {lengths}\n".encode())
    for letter, axis in zip("XYZ", axes, strict=True):
        out.write(f"{letter}_COORDINATES {len(axis)} double\n".encode())
        out.write(axis.astype(">f8").tobytes() + b"\n")
    out.write(f"POINT_DATA {surface.measured.size}\n".encode())
    (first, values), *others = [*surface.quantities.items(), ("measured", surface.measured)]
    out.write(f"SCALARS {first} double 1\nLOOKUP_TABLE default\n".encode())
    out.write(values.astype(">f8").tobytes() + b"\n")  # x runs fastest, as in [ny, nx]
    if others:  # as fields: of several SCALARS, readers take the first alone
        out.write(f"FIELD FieldData {len(others)}\n".encode())
    for name, values in others:
        out.write(f"{name} 1 {values.size} double\n".encode())
        out.write(values.astype(">f8").tobytes() + b"\n")
    return out.getvalue()


EXPORTS: Mapping[str, Callable[[Surface], bytes]] = {"csv": _csv, "h5": _h5, "vtk": _vtk}
"""The kinds of files by suffix."""
