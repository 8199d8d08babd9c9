"""Curvature along a training: for any loop, and beside a run of the trainer."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.func import functional_call

from flatkit import checkpoints
from flatkit.data import DATASETS
from flatkit.errors import InvalidArgumentError, ResultError, TrainingDivergedError
from flatkit.training import CurvatureTracker, RunTracker, TrainingConfig, train
from flatkit_cli.train import train as train_command
from tests.cases import Case, classes, seeded

CONFIG = TrainingConfig(
    data="gaussians",
    data_kwargs={"samples": 50},
    model_kwargs={"hidden": (4,), "activation": "tanh"},
    batch_size=20,
    epochs=3,
    device="cpu",
    label_smoothing=0.1,
)
STEPS = 6  # 40 training samples


def test_tracking_starts_warm_and_spends_no_more_products():
    """That nothing larger was missed has to be seen anew, which a warm start does not save."""
    case = Case(
        "wide",
        seeded(lambda: nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 3))),
        classes(60, 8),
    )
    totals = []
    for warm in (True, False):
        model, (x, y) = case.build(), case.data()
        tracker = CurvatureTracker("cross_entropy", (x, y), every=5, tolerance=1e-3, warm=warm)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        for step in range(41):
            tracker.step(model, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert len(tracker.history) == 9
        totals.append(sum(found.matvecs for found in tracker.history[1:]))
    assert totals[0] <= totals[1]


def rows(folder):
    return json.loads((folder / "curvature.json").read_text())["rows"]


def dense_top(folder):
    """The largest eigenvalue at the checkpoint, in float64, over all training samples."""
    stored = checkpoints.load(folder / "ckpt.pt")
    model = stored.build_model().double().eval()
    x, y = DATASETS.build("gaussians", **CONFIG.data_kwargs).train
    names, sizes = zip(*((n, p.numel()) for n, p in model.named_parameters()), strict=True)
    shapes = [p.shape for p in model.parameters()]

    def loss(flat):
        parts = [p.view(s) for p, s in zip(flat.split(list(sizes)), shapes, strict=True)]
        outputs = functional_call(model, dict(zip(names, parts, strict=True)), (x.double(),))
        return nn.functional.cross_entropy(outputs, y, label_smoothing=0.1)

    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(loss, theta)
    assert isinstance(hessian, torch.Tensor)
    return float(torch.linalg.eigvalsh(hessian)[-1])


def test_a_tracked_run_equals_one_that_is_not_and_its_last_row_the_dense_hessian(tmp_path):
    train(CONFIG, tmp_path / "plain")
    tracker = RunTracker(CONFIG, tmp_path / "tracked", every=2, tolerance=1e-4)
    train(CONFIG, tmp_path / "tracked", on_step=tracker)
    plain, tracked = (checkpoints.load(tmp_path / n / "ckpt.pt") for n in ("plain", "tracked"))
    for name, tensor in plain.state_dict.items():
        assert torch.equal(tensor, tracked.state_dict[name]), name
    found = rows(tmp_path / "tracked")
    assert [row["step"] for row in found] == [2, 4, STEPS]
    truth = dense_top(tmp_path / "tracked")
    assert abs(found[-1]["values"][0] - truth) <= found[-1]["errors"][0]
    assert found[-1]["errors"][0] <= 2e-4 * truth and found[-1]["status"] == "converged"


def test_a_resumed_run_keeps_what_was_measured_until_its_last_whole_epoch(tmp_path):
    def stop(model, step):
        tracker(model, step)
        if step == 5:  # in the third epoch
            raise KeyboardInterrupt

    tracker = RunTracker(CONFIG, tmp_path, every=1)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, tmp_path, on_step=stop)
    before = rows(tmp_path)
    again = RunTracker(CONFIG, tmp_path, every=1, resume=True)
    train(CONFIG, tmp_path, resume=True, on_step=again)
    assert [row["step"] for row in before] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert rows(tmp_path)[:4] == before[:4] and rows(tmp_path)[4] != before[4]  # 5: a cold start


def test_the_command_tracks_and_overwriting_removes_the_rows(tmp_path):
    options = ["--data", "gaussians", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path)]
    tracked = CliRunner().invoke(train_command, [*options, "--track-curvature", "3"])
    assert tracked.exit_code == 0 and rows(tmp_path)[0]["step"] == 3
    plain = CliRunner().invoke(train_command, [*options, "--overwrite"])
    assert plain.exit_code == 0 and not (tmp_path / "curvature.json").exists()
    wrong = CliRunner().invoke(train_command, [*options, "--overwrite", "--track-curvature", "0"])
    assert wrong.exit_code == 2 and "track-curvature" in wrong.stderr


def test_rows_that_are_none_and_steps_that_are_none_are_refused(tmp_path):
    train(CONFIG, tmp_path)
    (tmp_path / "curvature.json").write_text("{}")
    with pytest.raises(ResultError, match=r"curvature\.json does not hold"):
        RunTracker(CONFIG, tmp_path, every=1, resume=True)
    with pytest.raises(InvalidArgumentError, match="every"):
        RunTracker(CONFIG, tmp_path, every=0)


def test_weights_that_diverge_are_an_error_of_the_training(tmp_path):
    def ruin(model, step):
        if step == 2:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        tracker(model, step)

    tracker = RunTracker(CONFIG, tmp_path, every=1)
    with pytest.raises(TrainingDivergedError, match="after step 2 of the run"):
        train(CONFIG, tmp_path, on_step=ruin)
    assert [row["step"] for row in rows(tmp_path)] == [1]
