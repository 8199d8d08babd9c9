"""Jobs: previews, what a fingerprint tells apart, statistics of which samples."""

import sqlite3

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flatkit import Objective
from flatkit.errors import OutputError
from flatkit.files import Store
from flatkit.landscape import (
    LandscapeJob,
    Subspace,
    Surface,
    load_surface,
    measure_into,
    random_subspace,
)
from tests.cases import CASES

CASE = next(case for case in CASES if case.name == "tanh mlp")
BATCHNORM = next(case for case in CASES if "batchnorm" in case.name)


def job_of(case=CASE, n=17, seed=0, data=None, **settings):
    objective = Objective(case.build(), case.loss, case.data() if data is None else data)
    subspace = random_subspace(objective.space, objective.theta, seed=seed)
    steps = np.linspace(-0.5, 0.5, n)
    return LandscapeJob({"train": objective}, subspace, {"x": steps, "y": steps}, **settings)


def test_previews_show_the_whole_early_and_come_closer():
    seen, counts = [], []
    whole = job_of().measure(
        preview=seen.append, progress=lambda done, total: counts.append((done, total))
    )
    assert len(seen) >= 2 and not any(surface.header["complete"] for surface in seen)
    assert whole.header["complete"] and whole.measured.all()
    assert seen[0].measured.sum() <= 17 * 17 / 4
    errors = [
        np.abs(surface.quantities["loss"] - whole.quantities["loss"]).max() for surface in seen
    ]
    assert errors[0] < 0.05 * np.ptp(whole.quantities["loss"])
    assert errors[-1] < errors[0]
    for surface in seen:
        at = surface.measured
        np.testing.assert_array_equal(surface.quantities["loss"][at], whole.quantities["loss"][at])
    assert counts[-1] == (289, 289) and counts == sorted(counts)


def test_a_refined_surface_has_the_measured_values_of_the_whole_one():
    whole = job_of(n=33).measure()
    found = job_of(n=33, refine=0.01).measure()
    at = found.measured
    assert set(found.quantities) == {"loss"}
    assert 0.05 < at.mean() < 0.5
    np.testing.assert_allclose(
        found.quantities["loss"][at], whole.quantities["loss"][at], rtol=1e-12
    )
    np.testing.assert_allclose(found.quantities["loss"], whole.quantities["loss"], rtol=0.01)
    assert found.header["points_measured"] == at.sum()


@pytest.mark.parametrize("tolerance", [0.01, 0.03])
def test_refinement_of_a_smooth_plane_saves_most_points_and_stays_within_its_tolerance(tolerance):
    settings = {"n": 51, "quantities": ("loss", "gradient_norm")}
    whole = job_of(**settings).measure()
    found = job_of(**settings, refine=tolerance).measure()
    at = found.measured
    assert 0.05 < at.mean() < 0.25
    for name, values in whole.quantities.items():
        np.testing.assert_array_equal(found.quantities[name][at], values[at])
        assert not np.array_equal(found.quantities[name][~at], values[~at])  # not measured
        miss = (
            np.abs(found.quantities[name] - values) / values / np.log(values.max() / values.min())
        )
        assert miss.max() <= tolerance, name


def test_the_fingerprint_tells_apart_whatever_changes_a_value():
    x, y = CASE.data()
    other = torch.cat([x[:1] + 1e-9, x[1:]])
    prints = [
        job_of(),
        job_of(n=19),
        job_of(seed=1),
        job_of(data=(other, y)),
        job_of(data=(x, torch.roll(y, 1))),
        job_of(quantities=("loss", "gradient_norm")),
        job_of(refine=0.1),
    ]
    assert len({job.fingerprint for job in prints}) == len(prints)
    assert job_of().fingerprint == prints[0].fingerprint


def test_statistics_on_test_data_are_estimated_on_the_training_samples():
    x, y = BATCHNORM.data()
    train, test = (
        Objective(BATCHNORM.build(), BATCHNORM.loss, (x[part], y[part]))
        for part in (slice(12), slice(12, None))
    )
    direction = torch.randn(1, train.num_parameters, generator=torch.Generator().manual_seed(0))
    subspace = Subspace("given", train.theta, 0.1 * direction.double())
    found = LandscapeJob(
        {"train": train, "test": test}, subspace, {"t": np.arange(2.0)}, statistics="reestimate"
    ).measure()
    model = BATCHNORM.build()
    point = train.theta + subspace.vectors[0]
    torch.nn.utils.vector_to_parameters(point, model.parameters())
    model[1].momentum = None  # type: ignore[index]
    model[1].reset_running_stats()  # type: ignore[index]
    with torch.no_grad():
        model.train()(x[:12])
        expected = float(F.cross_entropy(model.eval()(x[12:]), y[12:]))
    assert found.quantities["test_loss"][1] == pytest.approx(expected, rel=1e-12)


def test_infinite_and_missing_values_are_kept_in_the_surface_and_its_file(tmp_path):
    from flatkit.landscape import load_surface
    from tests.cases import quadratic_task

    matrix = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    objective = Objective(*quadratic_task(matrix))
    subspace = Subspace("given", objective.theta, torch.eye(2).double())
    steps = np.array([0.0, 1e200])
    found = LandscapeJob({"train": objective}, subspace, {"x": steps, "y": steps}).measure()
    loss = load_surface(found.save(tmp_path / "a.npz")).quantities["loss"]
    assert loss[0].tolist() == [0.0, np.inf] and loss[1, 0] == -np.inf and np.isnan(loss[1, 1])


def test_a_disk_that_is_full_meanwhile_is_told_once_and_the_surface_is_saved(tmp_path, monkeypatch):
    save, told, path = Surface.save, [], tmp_path / "a.npz"

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    def save_at_the_end(surface, path):
        if not surface.header["complete"]:
            raise OutputError(f"cannot write {path}: No space left on device")
        save(surface, path)

    job = job_of()

    def begun(*_):
        monkeypatch.setattr(Store, "_insert", full)

    monkeypatch.setattr(Surface, "save", save_at_the_end)
    found = measure_into(path, job, note=told.append, progress=begun)
    assert len(told) == 1 and "full" in told[0]
    expected = job.measure().quantities["loss"]
    np.testing.assert_array_equal(found.quantities["loss"], expected)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(load_surface(path).quantities["loss"], expected)
