"""Options of a command that measures checkpoints: of what, what and how, and where it goes."""

from typing import Any

from flatkit.measures.registry import MEASURES
from flatkit.measures.settings import DEFAULT_MEASURES, AnalysisSettings
from flatkit_cli.options import F, option, setting_options, take_settings
from flatkit_cli.output import format_option, output_options
from flatkit_cli.subject import subject_options

_FLAGS = {measure.flag: measure for measure in MEASURES.own if measure.flag}


def measuring_options(command: F) -> F:
    """Add all options of `analyze` and `compare`; `take_output` and the like take them."""
    command = _measure_flags(fresh_option(output_options(format_option(command))))
    return subject_options(setting_options(AnalysisSettings)(command))


def fresh_option(command: F) -> F:
    """Add `--fresh`."""
    return option(
        "--fresh",
        is_flag=True,
        group="Output",
        help="Forget what an earlier run of the same --json file has kept.",
    )(command)


def _measure_flags(command: F) -> F:
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
