"""What to measure and how; no torch, so that the command line can check its options at once."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

from flatkit.checks import check_choice, nearest
from flatkit.errors import InvalidArgumentError, PluginError
from flatkit.measures.effort import EffortSettings
from flatkit.measures.registry import MEASURES
from flatkit.objective.settings import ObjectiveSettings
from flatkit.settings import check_made, check_values, described, setting, settings_of

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
    parts = tuple(dict.fromkeys((ObjectiveSettings, ChosenMeasures, EffortSettings, *own)))
    owners(parts)
    return parts


def owners(parts: Iterable[type]) -> Mapping[str, type]:
    """Return which of some classes declares each setting.

    Raises:
        PluginError: two of them declare one name, so that a value would reach only one of them.

    >>> owners([ChosenMeasures])["added"].__name__
    'ChosenMeasures'
    """
    found: dict[str, type] = {}
    for part in parts:
        for name in settings_of(part):
            other = found.setdefault(name, part)
            if other is not part:
                raise PluginError(
                    f"both {_place(other)} and {_place(part)} declare a setting {name!r}; one of "
                    "them must give it another name"
                )
    return found


def _by_flag(name: str) -> str:
    """Return what a setting is called here, of which the command line has another name."""
    for setting_name, known in settings_of(AnalysisSettings).items():
        if f"--{name.replace('_', '-')}" in known.flags:
            return f"; the option --{name.replace('_', '-')} is `{setting_name}` in Python"
    return ""


def _place(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


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
            raise InvalidArgumentError("draws > 1 needs `samples`, the size of a draw")
        # The order in which they are named must not change a number.
        object.__setattr__(self, "measures", self._in_order())
        if self.dtype == "bfloat16":
            object.__setattr__(self, "measures", self._able_in("dtype bfloat16"))
        self._check_added()

    def to_json(self) -> dict[str, Any]:
        """Return all of them, ready for JSON."""
        # Field by field, as `asdict` would copy the settings of other packages deeply.
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.loads(json.dumps(known, default=str))

    def _in_order(self) -> tuple[str, ...]:
        """Return the measures in running order, with those that a setting asks for."""
        asked = {measure.name: measure.asked_by for measure in MEASURES.own if measure.asked_by}
        for name, by in asked.items():
            if name in self.measures and getattr(self, by) is None:
                meaning = settings_of(type(self))[by].help
                raise InvalidArgumentError(
                    f"the measure {name} needs the setting `{by}`: "
                    f"{meaning[0].lower()}{meaning[1:]}"
                )
        given = {name for name, by in asked.items() if getattr(self, by) is not None}
        return tuple(name for name in MEASURES if name in self.measures or name in given)

    def in_16_bits(self, words: str) -> "AnalysisSettings":
        """Return these settings for a model that computes in 16 bits by itself.

        Args:
            words: what makes its numbers wrong.

        Raises:
            InvalidArgumentError: a measure that was named has no bar for what that adds.

        >>> "trace" in AnalysisSettings().in_16_bits("the float16 of the model").measures
        True
        """
        return replace(self, measures=self._able_in(words))

    def _able_in(self, words: str) -> tuple[str, ...]:
        """Return the measures whose errors hold what 16 bits add; of the usual ones, those."""
        if self.method not in ("auto", "lanczos"):
            raise InvalidArgumentError(
                f"method {self.method} cannot say how wrong {words} makes its eigenvalues; "
                "choose the method lanczos, or dtype float32"
            )
        able = tuple(name for name in self.measures if MEASURES[name].in_bfloat16)
        others = [name for name in self.measures if name not in able]
        usual = [name for name in DEFAULT_MEASURES if name not in able]
        # Usual measures are left out, and the report says which; what was named must not be.
        if not able or (others and others != usual):
            known = ", ".join(measure.name for measure in MEASURES.own if measure.in_bfloat16)
            raise InvalidArgumentError(
                f"{', '.join(others)} cannot say how wrong {words} makes them; choose dtype "
                f"float32, or of the measures {known}"
            )
        return able

    def _check_added(self) -> None:
        """Refuse settings that no measure of another package declares, and wrong ones."""
        added = self._added_parts()
        declared = owners((*_parts(), *added))
        known = sorted(name for name, part in declared.items() if part in added)
        for name in self.added:
            if name in known:
                continue
            if name in declared:
                raise InvalidArgumentError(
                    f"added must not hold {name!r}: {name} has an option of its own: `{name}`"
                )
            near = _by_flag(name) or nearest(name, [*declared])
            takes = ", ".join(known) or "none, as no chosen measure of another package has settings"
            added_takes = "" if near and not known else f": `added` takes {takes}"
            raise InvalidArgumentError(f"setting {name!r} is not known{added_takes}{near}")
        for part in added:
            self.of(part)

    def _added_parts(self) -> tuple[type, ...]:
        """Return the classes that only the chosen measures of other packages declare."""
        wanted = (part for name in self.measures for part in MEASURES[name].settings)
        return tuple(part for part in dict.fromkeys(wanted) if part not in _parts())

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
        """Return the settings of one class, as a measure knows them; checked by their fields.

        Raises:
            InvalidArgumentError: one of them is not allowed.
            PluginError: no chosen measure declares the class.
        """
        if isinstance(self, part):
            return cast("S", self)
        if part not in self._added_parts():
            raise PluginError(
                f"no chosen measure declares {_place(part)}; the measure that asks for it must "
                f"name it: Measure(..., settings=({part.__name__},))"
            )
        given = {name: self.added[name] for name in settings_of(part) if name in self.added}
        check_values(part, given)
        return part(**given)


def chosen(settings: AnalysisSettings | None, changes: Mapping[str, Any]) -> AnalysisSettings:
    """Return the settings that a call means: those given, or the usual ones, and what it changes.

    Raises:
        InvalidArgumentError: they are no settings, or a change is not allowed.

    >>> chosen(None, {"seed": 3}).seed
    3
    """
    given = AnalysisSettings() if settings is None else settings
    return check_made("settings", given, AnalysisSettings).changed(changes)
