"""The documentation names what exists."""

import re
import shlex
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import click
import pytest

import flatkit
from flatkit.measures import MEASURES
from flatkit.results import Status
from flatkit.settings import settings_of
from flatkit_cli.main import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_their_options_exist(page):
    lines = [line for block in blocks(page.read_text("utf-8")) for line in block.splitlines()]
    calls = [shlex.split(line, comments=True) for line in lines if line.startswith("flatkit ")]
    for _, name, *words in calls:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        known = {flag for option in command.params for flag in option.opts + option.secondary_opts}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known, (page.name, name, given - known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_of_python_exist(page):
    for dotted in re.findall(r"\bflatkit((?:\.[A-Za-z_]\w*)+)\(?", page.read_text("utf-8")):
        found = flatkit
        for name in dotted[1:].split("."):
            found = getattr(found, name, None)
            assert found is not None, (page.name, dotted)


def test_every_measure_has_a_question_and_every_status_a_line():
    questions = (DOCS / "questions.md").read_text("utf-8")
    asked = set(re.findall(r"`(\w+)`", questions))
    plain = {"loss", "accuracy", "max_gradient_norm"}  # they answer what they are called
    assert {measure.name for measure in MEASURES.own} - plain <= asked
    told = set(re.findall(r"`(\w+)`", (DOCS / "comparing.md").read_text("utf-8")))
    of_pyhessian = {Status.UNCHECKED_STOP, Status.DISAGREEMENT}
    assert {status.value for status in set(Status) - of_pyhessian} <= told


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="needs mkdocs, of flatkit[docs]")
    spec = spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_holds_every_public_name(hooks):
    for room in hooks.ROOMS:
        module = import_module(room)
        rooms = set(hooks.ROOMS) if room == "flatkit" else set()
        public = {
            name
            for name in module.__all__
            if not name.startswith("__") and f"{room}.{name}" not in rooms
        }
        listed = hooks.names(room)
        assert set(listed) == public, room
        text = hooks.reference_page(room, "")
        for name, home in listed.items():
            assert f"::: {home}\n" in text
            place, _, own = home.rpartition(".")
            assert getattr(import_module(place), own) is getattr(module, name)


def test_the_page_of_measures_holds_all_of_them_with_their_settings(hooks):
    text = hooks.measures_text()
    for measure in MEASURES.own:
        assert f"## `{measure.name}`" in text and measure.about in text
        for cls in measure.settings:
            assert all(f"| `{name}` |" in text for name in settings_of(cls))


def test_the_page_of_a_command_is_its_help(hooks):
    assert "--html FILE" in hooks.command_page("compare")
    assert {"analyze", "compare", "verify"} <= set(hooks.commands())
