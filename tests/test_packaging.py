"""What a wheel holds, and that the documents agree with the code."""

import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import flatkit

ROOT = Path(__file__).parent.parent


def test_a_wheel_installs_exactly_the_two_packages(tmp_path):
    build = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"flatkit", "flatkit_cli"}
    assert {"flatkit/py.typed", "flatkit_cli/main.py"} <= set(names)
    templates = {f"flatkit/render/html/templates/page.{kind}" for kind in ("html", "css", "js")}
    assert {*templates, "flatkit/render/html/templates/plane.js"} <= set(names)
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "flatkit = flatkit_cli.main:main" in zipfile.ZipFile(wheel).read(entry).decode()


def test_the_oldest_versions_that_are_accepted_are_those_that_are_tested():
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    used = re.findall(r"\w+", extras["test"][0])[1:]
    floors = [*project["dependencies"], *(floor for extra in used for floor in extras[extra])]
    lines = (ROOT / "constraints-oldest.txt").read_text("utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", lines, re.MULTILINE))
    for name, oldest in (re.findall(r"^([\w-]+)>=([\d.]+)", floor)[0] for floor in floors):
        assert f"{pins.get(name)}.".startswith(f"{oldest}."), name


def test_the_version_is_in_the_changelog():
    assert f"## {flatkit.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_public_name_exists():
    for name in flatkit.__all__:
        assert getattr(flatkit, name) is not None
    assert set(flatkit.__all__) <= set(dir(flatkit))


def test_links_of_the_documents_lead_somewhere():
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8")):
            assert (ROOT / target).exists(), f"{document.name} links to {target}"
