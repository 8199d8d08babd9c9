"""What to measure and how; no torch, so that the command line can check its options at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

from flatkit.checks import check_choice
from flatkit.errors import InvalidArgumentError
from flatkit.measures.registry import MEASURES
from flatkit.objective.settings import ObjectiveSettings
from flatkit.settings import described, setting, settings_of

S = TypeVar("S")

DEFAULT_MEASURES = tuple(measure.name for measure in MEASURES.own if not measure.on_request)


@dataclass(frozen=True, kw_only=True)
class ChosenMeasures:
    """What is measured, and the settings of measures that other packages add."""

    measures: Sequence[str] = setting(
        DEFAULT_MEASURES,
        "What to measure; the costly ones, those of other packages and what follows from others "
        "only when named.",
        group="Measures",
        default_text="the rest",
    )
    added: Mapping[str, Any] = setting(
        {},
        "Settings of measures of other packages, by name.",
        group="Measures",
        flags=("--setting",),
    )


def _parts() -> tuple[type, ...]:
    """Return the classes whose fields the settings of an analysis have, each once."""
    own = (part for measure in MEASURES.own for part in measure.settings)
    return tuple(dict.fromkeys((ObjectiveSettings, ChosenMeasures, *own)))


# The bases come from the measures, so that one is added without an edit here; their fields begin
# with those of the last base. A type checker follows them where a measure asks for its own part.
@described
@dataclass(frozen=True, kw_only=True)
class AnalysisSettings(*reversed(_parts())):  # pyright: ignore[reportUntypedBaseClass]
    """Settings of `analyze`: the shared ones and those that each measure declares in its file.

    Raises:
        InvalidArgumentError: one of them is out of range.

    >>> AnalysisSettings(rho=(0.1, 0.01)).rho
    (0.01, 0.1)
    """

    def __post_init__(self) -> None:
        """Check everything, and sort the measures and radii."""
        for name in self.measures:
            check_choice("measures", name, MEASURES)
        if not self.measures:
            raise InvalidArgumentError("measures must name at least one measure, got none")
        for part in _parts():  # the first checks every field by what it says of itself
            if "__post_init__" in vars(part):
                part.__post_init__(self)
        if self.draws > 1 and self.samples is None:
            raise InvalidArgumentError("draws > 1 needs samples, the size of a draw")
        object.__setattr__(self, "measures", self._in_order())
        self._check_added()

    def _in_order(self) -> tuple[str, ...]:
        """Return the measures in running order, with those that a setting asks for."""
        asked = {measure.name: measure.asked_by for measure in MEASURES.own if measure.asked_by}
        for name, by in asked.items():
            if name in self.measures and getattr(self, by) is None:
                meaning = settings_of(type(self))[by].help
                raise InvalidArgumentError(f"{name} needs {by}: {meaning[0].lower()}{meaning[1:]}")
        given = {name for name, by in asked.items() if getattr(self, by) is not None}
        return tuple(name for name in MEASURES if name in self.measures or name in given)

    def _check_added(self) -> None:
        """Refuse settings that no measure of another package declares, and wrong ones."""
        wanted = [part for name in self.measures for part in MEASURES[name].settings]
        added = [part for part in dict.fromkeys(wanted) if part not in _parts()]
        known = {name for part in added for name in settings_of(part)}
        for name in set(self.added) - known:
            others = {*known, *settings_of(type(self))} - {name, "added"}
            check_choice("setting", name, others)
        for part in added:
            self.of(part)

    def changed(self, changes: Mapping[str, Any]) -> "AnalysisSettings":
        """Return these settings with single ones replaced, also those of added measures.

        >>> AnalysisSettings().changed({"seed": 3}).seed
        3
        """
        own = {field.name for field in fields(self)}
        known = {name: value for name, value in changes.items() if name in own}
        added = {name: value for name, value in changes.items() if name not in own}
        if added:
            known["added"] = {**self.added, **known.get("added", {}), **added}
        return replace(self, **known)

    def of(self, part: type[S]) -> S:
        """Return the settings of one class, as a measure knows them."""
        if isinstance(self, part):
            return cast("S", self)
        return part(**{name: self.added[name] for name in settings_of(part) if name in self.added})
