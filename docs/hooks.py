"""Pages made of the code: measures, commands, the reference, the gallery and the measured costs.

MkDocs calls the functions `on_...`. Nothing here imports torch: names come from the faces of the
rooms, docstrings are read by griffe, and notebooks are shown with the outputs that they hold.
"""

import ast
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
ROOMS = {
    "flatkit": "What most users need",
    "flatkit.results": "",
    "flatkit.measures": "",
    "flatkit.checkpoints": "",
    "flatkit.objective": "",
    "flatkit.hessian": "",
    "flatkit.spectrum": "",
    "flatkit.flatness": "",
    "flatkit.landscape": "",
    "flatkit.optim": "",
    "flatkit.training": "",
    "flatkit.integrations": "",
    "flatkit.verify": "",
    "flatkit.render": "",
}
PLACES = ["CHANGELOG.md", "CONTRIBUTING.md", "ARCHITECTURE.md"]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages that are made here to the navigation, and flatkit to the path."""
    sys.path[:0] = [str(ROOT), str(ROOT / "cli")]
    gallery = [{_heading(path): f"notebooks/{path.name}"} for path in notebooks()]
    assert config.nav is not None
    config.nav += [
        {"Gallery": gallery},
        {"Commands": [{name: f"commands/{name}.md"} for name in commands()]},
        {"Reference": [{room: f"reference/{room}.md"} for room in ROOMS]},
        {"Measured": [{_title(path): f"measured/{path.name}"} for path in measured()]},
        {"Project": PLACES},
    ]
    return config


@event_priority(100)  # before the plugin that shows notebooks looks for them
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""

    def add(path: str, content: str) -> None:
        files.append(File.generated(config, path, content=content))

    for path in notebooks():
        where = f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls
        files.append(File(*where))
    for name in commands():
        add(f"commands/{name}.md", command_page(name))
    for room, title in ROOMS.items():
        add(f"reference/{room}.md", reference_page(room, title))
    for path in measured():
        add(f"measured/{path.name}", path.read_text("utf-8"))
    for name in PLACES:
        add(name, _project_page(ROOT / name))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the measures where a page asks for them."""
    return (
        markdown.replace("<!-- measures -->", measures_text()) if "<!--" in markdown else markdown
    )


def notebooks() -> list[Path]:
    """Return the notebooks of the gallery."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def measured() -> list[Path]:
    """Return the results of the benchmarks."""
    return sorted((ROOT / "benchmarks" / "results").glob("*.md"))


def commands() -> list[str]:
    """Return the names of the commands."""
    from flatkit_cli.main import cli

    return cli.list_commands(click.Context(cli))


def command_page(name: str) -> str:
    """Return the help of a command, as it is printed."""
    from flatkit_cli.main import main

    printed = io.StringIO()
    with redirect_stdout(printed):
        main([name, "--help"])
    return f"# flatkit {name}\n\n```text\n{printed.getvalue().strip()}\n```\n"


def reference_page(room: str, title: str) -> str:
    """Return the page of a room: its docstring, and every name of its face."""
    path = ROOT.joinpath(*room.split("."), "__init__.py")
    doc = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    parts = [f"# {room}", title, doc]
    parts += [f"::: {home}" for home in names(room).values()]
    return "\n\n".join(part for part in parts if part) + "\n"


def names(room: str) -> dict[str, str]:
    """Return the public names of a room's face, each with where it is defined."""
    folder = ROOT.joinpath(*room.split("."))
    face = folder / "__init__.pyi"
    tree = ast.parse((face if face.exists() else folder / "__init__.py").read_text("utf-8"))
    found: dict[str, str] = {}
    for node in _statements(tree.body):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = room + (f".{node.module}" if node.module else "") if node.level else node.module
        if not module or not module.startswith("flatkit.") or module.endswith(".version"):
            continue
        for alias in node.names:
            name = alias.asname or alias.name
            if not name.startswith("_"):
                found[name] = f"{module}.{alias.name}"
    return found


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, also those for type checkers alone."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements(node.body)
        else:
            yield node


def measures_text() -> str:
    """Return every measure: what it is, how it is read, its settings."""
    from flatkit.measures.registry import MEASURES
    from flatkit.settings import settings_of

    parts: list[str] = []
    for measure in MEASURES.own:
        when = " Measured only when it is named." if measure.on_request else ""
        parts += [f"## `{measure.name}`", f"*{measure.help.capitalize()}.*{when}", measure.about]
        rows = [
            f"| `{name}` | {known.help} |"
            for cls in measure.settings
            for name, known in settings_of(cls).items()
        ]
        if rows:
            parts.append("\n".join(["| setting | what it does |", "|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def _project_page(path: Path) -> str:
    """Return a document of the repository; links to what is no page become its name."""
    pages = {*PLACES}

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        kept = target in pages or target.startswith(("http", "#"))
        return found[0] if kept else text

    return re.sub(r"\[([^\]]+)\]\(([^)]+)\)", link, path.read_text("utf-8"))


def _heading(path: Path) -> str:
    """Return the title of a notebook: its first heading."""
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        first = "".join(cell["source"]).strip().splitlines()[:1]
        if cell["cell_type"] == "markdown" and first and first[0].startswith("# "):
            return first[0].removeprefix("# ")
    return path.stem


def _title(path: Path) -> str:
    first = path.read_text("utf-8").lstrip().splitlines()[0]
    return first.removeprefix("# ") if first.startswith("# ") else path.stem
