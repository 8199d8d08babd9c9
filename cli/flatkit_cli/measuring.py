"""Options of what is measured, the same for every command that measures."""

from typing import Any

from flatkit.measures.registry import MEASURES
from flatkit.measures.settings import DEFAULT_MEASURES, AnalysisSettings
from flatkit_cli.options import F, option, take_settings

_FLAGS = {measure.flag: measure for measure in MEASURES.own if measure.flag}


def measure_flags(command: F) -> F:
    """Add the options that add a measure to what is measured."""
    for flag, measure in reversed(_FLAGS.items()):
        add = option(
            flag, measure.name, is_flag=True, group="Measures", help=f"Also the {measure.help}."
        )
        command = add(command)
    return command


def given_settings(options: dict[str, Any]) -> AnalysisSettings:
    """Take the settings out of the options, checked, with the measures that flags add.

    Raises:
        InvalidArgumentError: one of them is not allowed.
    """
    extra = [measure.name for measure in _FLAGS.values() if options.pop(measure.name)]
    given = take_settings(AnalysisSettings, options)
    if extra:
        given["measures"] = [*given.get("measures", DEFAULT_MEASURES), *extra]
    return AnalysisSettings(**given)
