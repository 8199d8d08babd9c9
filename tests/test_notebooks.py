"""The notebooks are stored with their outputs, and run from top to bottom with the same figures."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.long

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
KEPT = f"""
import sys
sys.path.append({str(NOTEBOOKS[0].parent.parent)!r})
from tests import kept_workers
kept_workers.made = kept_workers.FRESH  # `%reset` leaves a main module that cannot be forked
kept_workers.keep()
"""
"""Lets the interpreters that a notebook starts serve the next, too; they end with the kernel."""


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def figures(notebook: Any) -> list[int]:
    """Return how many figures each cell shows."""
    return [
        sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        for cell in notebook.cells
    ]


def without_images(output: Any) -> dict[str, Any]:
    return {kind: data for kind, data in output.get("data", {}).items() if "image" not in kind}


@pytest.fixture(scope="module")
def kernel():
    """One process for all notebooks: its imports take as long as a notebook."""
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=300, kernel_name="python3")
    with client.setup_kernel():
        execute(client, KEPT)
        yield client


def execute(kernel: NotebookClient, source: str) -> None:
    kernel.nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    kernel.reset_execution_trackers()
    kernel.execute_cell(kernel.nb.cells[0], 0)


def run(kernel: NotebookClient, notebook: Any, folder: Path) -> None:
    """Run all cells in a folder, without a name or a figure that another notebook has left."""
    execute(
        kernel,
        f"%reset -f\n%cd -q {folder}\nimport matplotlib.pyplot as plt\nplt.close('all')\ndel plt",
    )
    kernel.nb = notebook
    kernel.reset_execution_trackers()
    for number, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, number)


@pytest.mark.filterwarnings("ignore")  # those of Jupyter's own machinery
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_notebook_runs_and_draws_what_is_stored(path, kernel, tmp_path):
    """Claims of the text are asserted in the cells, so that running is checking."""
    stored = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    run(kernel, notebook, tmp_path)
    assert figures(notebook) == figures(stored)
    assert sum(figures(stored)) > 0
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_notebook_is_stored_whole(path):
    stored = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in stored.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.output_type for output in outputs(stored)}
    assert kinds <= {"stream", "display_data", "execute_result"}
    shown = [str({**output, "data": without_images(output)}) for output in outputs(stored)]
    assert not [text for text in shown if "/tmp" in text or "/home/" in text]  # of its machine
    assert path.stat().st_size < 1_000_000


def test_there_are_notebooks():
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("surface.plot()", 1),
        ("surface.plot.line()", 1),
        ("figure = surface.plot()", 1),
        ("surface.plot()\nsurface.plot();\nprint('end')", 2),
        ("figure = surface.plot()\nfigure", 1),
        ("figure", 1),
        ("surface.plot()\nraise SystemExit", 0),
    ],
)
def test_a_figure_is_shown_once_whether_its_cell_ends_in_it_or_not(source, shown, kernel, tmp_path):
    first = (
        "import flatkit\nsurface = flatkit.Surface({'t': [0.0, 1.0]}, {'loss': [1.0, 2.0]})\n"
        "figure = surface.plot()"
    )
    cells = [nbformat.v4.new_code_cell(first), nbformat.v4.new_code_cell(source)]
    cells[1].metadata.tags = ["raises-exception"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    run(kernel, notebook, tmp_path)
    assert figures(notebook)[-1] == shown
