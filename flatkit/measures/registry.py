"""The measures by name, in the order in which they run: one line a measure.

Another package adds a measure by an entry point of the group `flatkit.measures`, which names the
`Measure` in its code; a notebook adds one by `register`. No file is imported before its measure is
asked for, so that one that is broken disturbs nobody who does not use it.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import final

from flatkit.errors import InvalidArgumentError, PluginError
from flatkit.measures.base import Measure

GROUP = "flatkit.measures"

_NAMES = (
    "loss",
    "accuracy",
    "gradient_norm",
    "top_eigenvalues",
    "bottom_eigenvalues",
    "trace",
    "frobenius_norm",
    "spectral_density",
    "layer_curvature",
    "cross_check",
    "zeroth_order_sharpness",
    "first_order_flatness",
    "max_gradient_norm",
    "quadratic_model_maximum",
    "average_sharpness",
    "m_sharpness",
    "loss_slice",
    "loss_plane",
)
"""Of the measures of flatkit: each stands in the file of its name, and they run in this order."""


@final
class Measures(Mapping[str, Measure]):
    """Measures by name, in running order: those of flatkit, of other packages, registered ones.

    >>> MEASURES["trace"].help
    'trace of the Hessian'
    >>> list(MEASURES)[:2]
    ['loss', 'accuracy']
    """

    def __init__(self) -> None:
        self._registered: dict[str, Measure] = {}

    @cached_property
    def own(self) -> tuple[Measure, ...]:
        """The measures of flatkit itself."""
        return tuple(self[name] for name in _NAMES)

    @cached_property
    def _entries(self) -> dict[str, EntryPoint]:
        found = entry_points(group=GROUP)
        return {entry.name: entry for entry in found if entry.name not in _NAMES}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*_NAMES, *self._entries, *self._registered)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> Measure:
        """Return a measure; its file is imported now.

        Raises:
            PluginError: the package that adds it is broken.
        """
        if name in _NAMES:
            return import_module(f"flatkit.measures.{name}").MEASURE
        return self._registered[name] if name in self._registered else _load(self._entries[name])

    def help(self, name: str) -> str:
        """Return the line of a measure in the help, without importing other packages."""
        if name in self._entries:
            return f"from the package {_package(self._entries[name])}"
        return self[name].help

    def register(self, measure: Measure) -> Measure:
        """Add a measure, or replace one that was added before.

        Raises:
            InvalidArgumentError: its name is that of a measure of flatkit or of a package.

        >>> measures = Measures()
        >>> _ = measures.register(Measure("answer", "the answer", run=lambda session: []))
        >>> list(measures)[-1]
        'answer'
        """
        if measure.name in _NAMES or measure.name in self._entries:
            raise InvalidArgumentError(f"there is a measure {measure.name!r} already")
        self._registered[measure.name] = measure
        return measure


def _load(entry: EntryPoint) -> Measure:
    package = _package(entry)
    try:
        found = entry.load()
    except Exception as error:  # code of others: whatever it raises, the message names its package
        raise PluginError(
            f"the measure {entry.name} of the package {package} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Measure) or found.name != entry.name:
        raise PluginError(
            f"{entry.value} of the package {package} must be a flatkit.Measure of the name "
            f"{entry.name!r}, got {found!r}"
        )
    return found


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


MEASURES = Measures()
"""All measures."""
