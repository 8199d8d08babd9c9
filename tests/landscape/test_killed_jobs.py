"""A surface whose process is killed with SIGKILL in the middle, and one that was not, are equal."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatkit import checkpoints
from flatkit.data import DATASETS
from flatkit.errors import ResultError
from flatkit.landscape import (
    LandscapeJob,
    LandscapeSettings,
    load_surface,
    measure_into,
    plan_landscapes,
)
from flatkit.models import MODELS
from tests.processes import measure_until_killed, start

CASES = {
    "point by point": ("cnn", {"width": 2}, ("loss", "gradient_norm"), 1),
    "many points in a pass": ("mlp", {"hidden": [8]}, ("loss", "accuracy"), 16),
}


def checkpoint(folder: Path, model: str, arguments: dict) -> Path:
    data = {"name": "digits", "kwargs": {"test_fraction": 0.9}}
    built = DATASETS.build("digits", test_fraction=0.9)
    spec = {"in_shape": list(built.in_shape), "classes": built.classes, **arguments}
    torch.manual_seed(0)
    state = MODELS.build(model, **spec).state_dict()
    return checkpoints.save(
        folder / "ckpt.pt",
        model={"name": model, "kwargs": spec},
        data={**data, "sha256": built.sha256()},
        loss={"name": "cross_entropy", "kwargs": {}},
        state_dict=state,
    )


@pytest.mark.parametrize("case", CASES)
def test_no_finished_point_is_measured_again_and_the_result_is_identical(
    tmp_path, case, monkeypatch
):
    model, arguments, quantities, least = CASES[case]
    path = checkpoint(tmp_path, model, arguments)
    settings: dict[str, Any] = {"points": 13, "refine": 0.02, "samples": 60}
    settings["quantities"] = quantities
    passes: list[list] = []
    plain = LandscapeJob.values_at

    def counted(self, points):
        passes.append([tuple(point) for point in points])
        return plain(self, points)

    monkeypatch.setattr(LandscapeJob, "values_at", counted)
    (job,) = plan_landscapes([checkpoints.load(path)], LandscapeSettings(**settings))
    whole = measure_into(tmp_path / "whole.npz", job)
    everything, fatal = list(passes), len(passes) // 2 + 1
    assert len(everything[0]) >= least and len(everything) >= 3

    killed = tmp_path / "killed.npz"
    process = start(measure_until_killed, path, killed, settings, fatal)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not killed.exists() or not load_surface(killed).header["complete"]
    passes.clear()
    (job,) = plan_landscapes([checkpoints.load(path)], LandscapeSettings(**settings))
    resumed = measure_into(killed, job)
    assert passes == everything[fatal - 1 :]  # but the pass that the kill cut off, nothing twice
    for name, values in whole.quantities.items():
        np.testing.assert_array_equal(values, resumed.quantities[name])
    np.testing.assert_array_equal(whole.measured, resumed.measured)
    assert whole.header == resumed.header
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt.pt", "killed.npz", "whole.npz"]

    passes.clear()
    assert measure_into(killed, job).header["complete"] and passes == []  # nothing is left to do
    (other,) = plan_landscapes(
        [checkpoints.load(path)], LandscapeSettings(**{**settings, "seed": 1})
    )
    with pytest.raises(ResultError, match="measured otherwise"):
        measure_into(killed, other)
    assert measure_into(killed, other, overwrite=True).header["fingerprint"] == other.fingerprint
