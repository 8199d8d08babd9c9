"""The notebooks run from top to bottom, and their pictures are there."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SMALLER = {
    '"data": "digits",': '"data": "digits", "data_kwargs": {"test_fraction": 0.9},',
    '"hidden": (64, 64)': '"hidden": (16,)',
}
"""Every cell is run, with a smaller network on an eighth of the images."""


@pytest.mark.filterwarnings("ignore")  # those of Jupyter's own machinery
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_draws(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for full, small in SMALLER.items():
        assert any(full in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(full, small)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    drawn = [cell for cell in notebook.cells if "_figure(" in cell.source]
    assert drawn
    for cell in drawn:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_there_are_notebooks():
    assert NOTEBOOKS
