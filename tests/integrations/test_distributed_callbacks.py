"""Curvature along fits of two processes: the first one measures and logs the same numbers, once."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.devices.ports import free_port
from tests.integrations import distributed_fit
from tests.processes import finish, start

pytestmark = [pytest.mark.long, pytest.mark.distributed]


def fit(library: str, folder: Path, processes: int) -> list[dict[str, float]]:
    """Return what the first process measured, after the others measured nothing."""
    folder.mkdir()
    if processes == 1:
        distributed_fit.fit(library, folder, 1)
    else:
        port = free_port()
        each = [(library, folder, processes, rank, port) for rank in range(processes)]
        finish([start(distributed_fit.fit, *arguments) for arguments in each])
    histories: list[Any] = [
        json.loads((folder / f"history-{rank}.json").read_text()) for rank in range(processes)
    ]
    assert histories[1:] == [[]] * (processes - 1)
    return histories[0]


def logged(library: str, folder: Path) -> list[dict[str, float]]:
    """Return what the logger of the fit holds."""
    if library == "transformers":
        rows = json.loads((folder / "logged.json").read_text())
    else:
        files = list(folder.glob("**/metrics.csv"))
        assert len(files) == 1
        with files[0].open() as file:
            rows = [row for row in csv.DictReader(file) if row["curvature/trace"]]
    return [{k: float(v) for k, v in row.items() if k.startswith("curvature/")} for row in rows]


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_two_processes_measure_what_one_does_and_log_it_once(library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    alone = fit(library, tmp_path / "one", 1)
    both = fit(library, tmp_path / "two", 2)
    assert len(alone) == len(both) == 2
    for one, two, written in zip(alone, both, logged(library, tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)  # gradients are added up in another order
        assert written == pytest.approx(two, rel=1e-6)
    # The weights moved, so that the numbers are those of two states of one training.
    assert alone[0]["curvature/loss"] > 1.01 * alone[1]["curvature/loss"]
