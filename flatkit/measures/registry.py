"""The measures by name, in the order in which they run: one line a measure.

Another package adds a measure by an entry point of the group `flatkit.measures`, which names the
`Measure` in its code; a notebook adds one by `register`. The files of flatkit's own measures are
imported together, as the settings of an analysis are made of theirs. A file of another package is
imported when its measure is asked for, so that a broken one disturbs only those who use it.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, final

from flatkit.errors import InvalidArgumentError, PluginError
from flatkit.measures.base import Measure
from flatkit.registry import Registry

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
    "rounding",
    "loss_slice",
    "loss_plane",
)
"""The measures of flatkit, in running order; each stands in the file of its name."""


@final
class Measures(Mapping[str, Measure]):
    """Measures by name, in running order: those of flatkit, registered ones, those of packages.

    >>> MEASURES["trace"].help
    'trace of the Hessian'
    >>> list(MEASURES)[:2]
    ['loss', 'accuracy']
    """

    def __init__(self) -> None:
        self._homes: dict[str, str | Measure] = {
            name: f"flatkit.measures.{name}:MEASURE" for name in _NAMES
        }
        self._registry: Registry[Any] = Registry("measure", self._homes, "flatkit.measures")

    @cached_property
    def own(self) -> tuple[Measure, ...]:
        """The measures of flatkit itself."""
        return tuple(self[name] for name in _NAMES)

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    def __contains__(self, name: object) -> bool:
        return name in self._registry

    def __getitem__(self, name: str) -> Measure:
        """Return a measure; its file is imported now, if it was not before.

        Raises:
            InvalidArgumentError: no such measure.
            PluginError: the package that adds it is broken.
        """
        found = self._registry.load(name)
        # Another name would put its results under a measure that nobody asked for.
        if not isinstance(found, Measure) or found.name != name:
            named = isinstance(found, Measure)
            got = f"one of the name {found.name!r}" if named else f"a {type(found).__name__}"
            raise PluginError(
                f"{self._registry.origin(name)} must add a flatkit.Measure of the name {name!r}, "
                f"got {got}"
            )
        return found

    def outsider(self, name: str) -> str:
        """Return in words which measure this is and whose; empty for one of flatkit's own.

        >>> MEASURES.outsider("trace")
        ''
        """
        if name in _NAMES:
            return ""
        package = self._registry.package(name)
        return f"the measure {name} of the package {package}" if package else f"the measure {name}"

    def help(self, name: str) -> str:
        """Return the line of a measure in the help, without importing other packages."""
        package = self._registry.package(name)
        return f"from the package {package}" if package else self[name].help

    def register(self, measure: Measure) -> Measure:
        """Add a measure, or replace one that was registered before.

        Raises:
            InvalidArgumentError: its name is that of a measure of flatkit or of a package.

        >>> measures = Measures()
        >>> _ = measures.register(Measure("answer", "the answer", run=lambda session: []))
        >>> "answer" in measures
        True
        """
        name = measure.name
        # Reports of other machines have numbers of that name, and tables would mix them.
        if name in _NAMES or self._registry.package(name):
            raise InvalidArgumentError(f"there is a measure {name!r} already")
        self._homes[name] = measure
        return measure


MEASURES = Measures()
"""All measures."""
