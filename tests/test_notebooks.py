"""The notebooks run from top to bottom, and their pictures are there."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
DIGITS, FEW = '"data": "digits",', '{"test_fraction": 0.9}'


@pytest.mark.filterwarnings("ignore")  # those of Jupyter's own machinery
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_draws(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # every cell, on 180 of the 1,437 images: an eighth of the time
        cell.source = cell.source.replace(DIGITS, f'{DIGITS}\n    "data_kwargs": {FEW},')
    assert any(FEW in cell.source for cell in notebook.cells)
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
