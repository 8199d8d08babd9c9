"""Options made from settings: types, lists, headings, the nearest name, one set for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from flatkit.errors import InvalidArgumentError
from flatkit.measures.settings import AnalysisSettings
from flatkit.objective.settings import ObjectiveSettings
from flatkit.settings import setting, settings_of
from flatkit_cli.main import cli, main
from flatkit_cli.options import Command, setting_options, take_settings


@dataclass(frozen=True)
class Walk:
    steps: int = setting(3, "How many.", group="Way", metavar="N")
    pace: Literal["slow", "fast"] = setting("slow", "How.", group="Way")
    stops: Sequence[Literal["wood", "lake"]] = setting((), "Where.", group="Places")
    rho: Sequence[float] = setting((0.1, 0.2), "Radii.", group="Places")
    between: tuple[float, float] | None = setting(None, "From and to.", default_text="all of it")
    dog_args: Mapping[str, Any] = setting({}, "Of the dog.", flags=("--dog-arg",))
    rename: Mapping[str, str] = setting({}, "Names.")
    alone: bool = setting(False, "With nobody.")


@click.command(cls=Command)
@setting_options(Walk)
@click.pass_context
def walk(ctx: click.Context, **options: Any) -> None:
    ctx.obj.append(take_settings(Walk, options))


def parsed(*arguments: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    result = CliRunner().invoke(walk, arguments, obj=found, standalone_mode=False)
    if result.exception:
        raise result.exception
    return found[0]


def test_what_is_not_given_is_left_to_the_dataclass():
    assert parsed() == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--steps 4 --pace fast", {"steps": 4, "pace": "fast"}),
        ("--rho 0.01,0.05 --rho 0.1", {"rho": [0.01, 0.05, 0.1]}),
        ("--rho 0.1,", {"rho": [0.1]}),
        ("--stops wood,lake --stops wood", {"stops": ["wood", "lake", "wood"]}),
        ("--stops ,", {"stops": []}),
        ("--between -1,1", {"between": [-1.0, 1.0]}),
        ("--dog-arg ages=3,", {"dog_args": {"ages": [3]}}),
        ("--dog-arg age=3 --dog-arg name=rex", {"dog_args": {"age": 3, "name": "rex"}}),
        ("--rename a=b --rename c=", {"rename": {"a": "b", "c": ""}}),
        ("--alone", {"alone": True}),
        ("--no-alone", {"alone": False}),
    ],
)
def test_values_have_the_types_of_the_fields(arguments, expected):
    assert parsed(*arguments.split()) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--pace fats", r"'fats' is not one of slow, fast; did you mean 'fast'\?"),
        ("--stops lake,wod", r"'wod' is not one of wood, lake; did you mean 'wood'\?"),
        ("--rho 0.1,x", "--rho must be numbers separated by commas, got '0.1,x'"),
        ("--rho 0.1,,0.2", "--rho must have an entry between two commas, got '0.1,,0.2'"),
        ("--rho ,0.1", "--rho must have an entry between two commas"),
        ("--stops lake,,wood", "--stops must have an entry between two commas"),
        ("--dog-arg ages=1,,2", "--dog-arg ages must have an entry between two commas"),
        ("--steps x", "'x' is not a valid integer"),
        ("--dog-arg age", "--dog-arg must be NAME=VALUE"),
        ("--rename ab", "--rename must be OLD=NEW"),
    ],
)
def test_other_values_are_refused(arguments, message):
    with pytest.raises((click.ClickException, ValueError), match=message):
        parsed(*arguments.split())


def test_the_help_lists_the_options_under_their_headings_with_defaults():
    text = " ".join(CliRunner().invoke(walk, ["--help"]).output.split())
    way, places, rest = (text.index(heading) for heading in ("Way:", "Places:", "Options:"))
    assert way < text.index("--steps N How many. [default: 3]") < places
    assert places < text.index("--rho NUMBER[,...] Radii. Repeatable. [default: 0.1, 0.2]")
    assert rest < text.index("--between LOW,HIGH From and to. [default: all of it]")
    assert "--pace [slow|fast] How. [default: slow]" in text
    assert "--alone / --no-alone With nobody. [default: no-alone]" in text


def options_of(command: str) -> set[str]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    return {opt for param in found.params for opt in param.opts if opt.startswith("--")}


def test_every_command_of_a_checkpoint_has_the_shared_options():
    shared = {"--task", "--model", "--model-arg", "--data", "--data-arg", "--data-root"}
    shared |= {"--loss", "--entry", "--rename", "--ignore", "--chunk-size", "--batch-size"}
    shared |= {f"--{name.replace('_', '-')}" for name in settings_of(ObjectiveSettings)}
    for command in ("analyze", "verify", "landscape"):
        assert shared <= options_of(command), command


def test_the_shared_options_reach_what_verify_measures(tmp_path, capsys):
    import json

    from flatkit.training import TrainingConfig, train

    config = TrainingConfig(data="gaussians", epochs=1, device="cpu")
    checkpoint = str(train(config, tmp_path).checkpoint)
    given = ("--batchnorm", "train", "--batch-size", "16", "--memory", "100000000")
    given += ("--rho", "0.01,0.02", "--search-budget", "30", "--samples", "32", "--device", "cpu")
    assert main(["verify", checkpoint, *given, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    objective = report["objective"]
    assert (objective["batchnorm"], objective["chunk_size"]) == ("train", 16)
    radii = {r["settings"]["rho"] for r in report["results"] if "rho" in r["settings"]}
    assert radii == {0.01, 0.02}
    assert main(["verify", checkpoint, "--device", "tpu"]) == 2
    assert "device" in capsys.readouterr().err


def test_an_option_of_another_name_than_its_setting_takes_that_name_too_unlisted():
    assert parsed("--dog-args", "age=3") == parsed("--dog-arg", "age=3")
    text = CliRunner().invoke(walk, ["--help"]).output
    assert "--dog-arg " in text and "--dog-args" not in text


def test_a_python_caller_who_writes_the_option_is_told_the_setting():
    with pytest.raises(InvalidArgumentError, match="--eigenvalues is `num_eigenvalues` in Python"):
        AnalysisSettings().changed({"eigenvalues": 3})
    assert "num-eigenvalues" not in CliRunner().invoke(cli, ["analyze", "--help"]).output
