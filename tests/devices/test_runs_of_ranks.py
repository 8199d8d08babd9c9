"""Studies and trainings that several processes share: runs are handed out, epochs measured once."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flatkit
from flatkit.devices.joining import joined
from flatkit.results import Report
from flatkit.studies import runs as single
from flatkit.studies import study as studies
from flatkit.studies.runs import study_runs
from flatkit.studies.settings import Arm, Study
from flatkit.training import TrainingConfig, train
from tests.devices.commands import together
from tests.devices.ports import free_port
from tests.processes import finish, start

pytestmark = [pytest.mark.long, pytest.mark.distributed]
SMALL: dict[str, Any] = {
    "data": "gaussians",
    "data_kwargs": {"samples": 60},
    "batch_size": 16,
    "device": "cpu",
}
STUDY = Study(
    arms=[Arm("sgd"), Arm("sam", {"optimizer": "sam", "rho": 0.2})],
    seeds=(0, 1),
    train={**SMALL, "epochs": 3},
    analyze={"measures": ["loss", "top_eigenvalues"], "samples": 32},
)


def values_in(file: Path) -> list[Any]:
    return [(r.measure, r.value, r.error) for r in Report.load(file)]


def carry_out(rank: int, port: int, folder: Path) -> None:
    """Do the share of one rank of a study, and again when all is done."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    plain, made = studies.Processes.map, []

    def counted(self: Any, function: Any, calls: Any) -> Any:
        made.extend(call[0] for call in calls)
        return plain(self, function, calls)

    studies.Processes.map = counted  # type: ignore[method-assign]
    with joined():
        found = studies.study(STUDY, folder / "study", progress=False)
        own = list(made)
        again = studies.study(STUDY, folder / "study", progress=False)
    said = {"own": own, "all": made, "claims": found.to_dict(), "again": again.to_dict()}
    (folder / f"{rank}.json").write_text(json.dumps(said))


def test_runs_of_a_study_are_made_once_by_whichever_rank_is_free(tmp_path):
    port = free_port()
    finish([start(carry_out, rank, port, tmp_path) for rank in range(2)])
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    places = [run.folder for run in study_runs(STUDY, {})]
    made = [place for each in said for place in each["own"]]
    assert sorted(made) == sorted(str(tmp_path / "study" / place) for place in places)
    assert all(each["own"] for each in said)
    assert all(each["all"] == each["own"] for each in said)  # what is done is not made again
    assert all(each[name] == said[0]["claims"] for each in said for name in ("claims", "again"))
    run = study_runs(STUDY, {})[3]
    alone = tmp_path / "alone"
    single.run_one(str(alone), run.settings, STUDY.analysis_of(run.seed), [], "", "")
    found = values_in(tmp_path / "study" / run.folder / "report.json")
    assert found == values_in(alone / "report.json")
    assert (tmp_path / "study" / "claims.json").is_file()


def test_a_study_of_several_processes_takes_no_jobs(tmp_path):
    line = ["study", "digits", "--out", str(tmp_path / "out"), "--jobs", "2", "--no-plan"]
    ended = together(tmp_path / "said", *[line] * 2)
    assert ended[0].code == 2 and ended[0].err.startswith("error: --jobs must be left out where")
    assert ended[0].err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_epochs_are_tracked_by_all_processes_together_and_written_once(tmp_path):
    config = TrainingConfig(**SMALL, epochs=2, save_every=1)
    train(config, tmp_path / "run")
    asked: dict[str, Any] = {"dtype": "float64", "tolerance": 1e-8, "measures": ["top_eigenvalues"]}
    expected = flatkit.track(tmp_path / "run", progress=False, **asked)
    line = ["track", str(tmp_path / "run"), "--json", str(tmp_path / "t.json")]
    line += ["--dtype", "float64", "--tolerance", "1e-8", "--measures", "top_eigenvalues"]
    ended = together(tmp_path / "said", *[line] * 2)
    assert [each.code for each in ended] == [0, 0], ended[0].err
    assert ended[0].out and not ended[1].out and not ended[1].err
    found = flatkit.load_results(tmp_path / "t.json")
    assert [entry.epoch for entry in found.entries] == [1, 2]
    for own, other in zip(found.entries, expected.entries, strict=True):
        for result, wanted in zip(own.report, other.report, strict=True):
            assert result.measure == wanted.measure
            np.testing.assert_allclose(result.value, wanted.value, rtol=1e-6)
    assert found.entries[1].report.find("eigenvector_overlap") is not None
    assert sorted(path.name for path in tmp_path.iterdir() if "said" not in path.name) == [
        "run",
        "t.json",
    ]
