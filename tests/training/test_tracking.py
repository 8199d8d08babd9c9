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
from flatkit.training.allowance import Allowance
from flatkit.training.tracking import TRACKED
from flatkit_cli.train import train as train_command
from tests.cases import Case, classes, seeded
from tests.processes import finish, start
from tests.training.tracked_process import train_together

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


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("cost", [0.001, 0.05, 0.4, 3.0, 40.0])
def test_measurements_keep_their_share_of_a_training(cost):
    clock = Clock()
    allowance = Allowance(0.03, clock=clock)
    allowance.begin()
    done, after = 0, [0.0]
    for _ in range(5000):  # steps of half a second
        clock.now += 0.5
        if allowance.allows():
            with allowance.measuring():
                clock.now += cost
            done += 1
            after.append(allowance.spent / clock.now)
    assert max(after[2:], default=0.0) <= 0.03 + 1e-9  # of the first one nobody knows what it takes
    most = min(5000, int(0.03 * clock.now / cost))
    assert done == max(1, most) or abs(done - most) <= 1  # no more seldom than the share asks


def test_a_tracker_waits_for_its_share_and_says_so_once(monkeypatch):
    clock, (x, y) = Clock(), (torch.randn(20, 3), torch.arange(20) % 3)
    model = nn.Linear(3, 3)
    tracker = CurvatureTracker("cross_entropy", (x, y), every=1, max_share=0.1, clock=clock)
    measured = CurvatureTracker._measured

    def slow(self, model, step):
        clock.now += 2.0
        return measured(self, model, step)

    monkeypatch.setattr(CurvatureTracker, "_measured", slow)
    with pytest.warns(UserWarning, match="a measurement takes 2 s") as caught:
        for step in range(1, 101):
            clock.now += 1.0
            tracker.step(model, step)
    assert len(caught) == 1 and tracker.seconds == 2.0 * len(tracker.history)
    # 100 s of training: 2n <= 0.1 (100 + 2n), so that n <= 5.6
    assert len(tracker.history) == 5


def test_trace_and_gradient_norm_are_those_of_the_dense_hessian():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=generator), torch.arange(30) % 3
    torch.manual_seed(1)
    model = nn.Linear(4, 3)
    tracker = CurvatureTracker("cross_entropy", (x, y), measures=TRACKED, k=2, tolerance=1e-5)
    row = tracker.measure(model, 7)
    theta = torch.cat([model.weight.detach().flatten(), model.bias.detach()]).double()

    def loss(flat):
        return nn.functional.cross_entropy(x.double() @ flat[:12].view(3, 4).T + flat[12:], y)

    hessian = torch.autograd.functional.hessian(loss, theta)
    assert isinstance(hessian, torch.Tensor)
    values = torch.linalg.eigvalsh(hessian)
    assert row.values == pytest.approx([float(values[-1]), float(values[-2])], rel=1e-4)
    assert row.trace is not None and row.trace_error is not None
    assert abs(row.trace - float(hessian.trace())) <= 3 * row.trace_error + 1e-6
    slope = torch.func.grad(loss)(theta)
    assert row.gradient_norm == pytest.approx(float(slope.norm()), rel=1e-5)
    assert row.scalars()["curvature/eigenvalue_2"] == row.values[1]


def contrastive(outputs, targets):
    pairs = torch.nn.functional.normalize(outputs, dim=1)
    return torch.nn.functional.cross_entropy(4 * pairs @ pairs.T, torch.arange(len(pairs)))


def over_words(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs[:, :, None].expand(-1, -1, 4), targets)


@pytest.mark.parametrize("loss", [contrastive, over_words])
def test_every_measurement_is_of_the_function_that_the_first_one_examined(loss):
    """Of many features few samples go through at once, and a mean of their means is another."""
    draw = torch.Generator().manual_seed(0)
    x, words = torch.randn(400, 4096, generator=draw), torch.randint(3, (400, 4), generator=draw)
    words[torch.arange(400)[:, None] > 100 * torch.arange(1, 5)] = -100  # the first have most
    model = seeded(lambda: nn.Linear(4096, 3))().float()
    tracker = CurvatureTracker(loss, (x, words), every=1, measures=["gradient_norm"])
    for step in (1, 2, 3):
        tracker.step(model, step)
    expected = loss(model(x), words)
    slope = torch.cat([p.flatten() for p in torch.autograd.grad(expected, [*model.parameters()])])
    for found in tracker.history:
        assert found.loss == pytest.approx(float(expected.detach()), rel=1e-5)
        assert found.gradient_norm == pytest.approx(float(slope.norm()), rel=1e-4)


def test_weights_that_are_shared_out_are_not_measured_as_if_they_were_whole():
    model = nn.Linear(2, 2)
    model.weight.ds_id = 3  # type: ignore[attr-defined]  # of DeepSpeed's third stage
    tracker = CurvatureTracker("mse", (torch.ones(2, 2), torch.ones(2, 2)), every=1)
    with pytest.warns(UserWarning, match="weight is shared out among processes") as caught:
        assert tracker.step(model, 1) is None and tracker.step(model, 2) is None
    assert len(caught) == 1 and not tracker.history


def test_only_the_first_process_measures(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    tracker = CurvatureTracker("mse", (torch.ones(2, 2), torch.ones(2, 2)), every=1)
    assert tracker.step(nn.Linear(2, 2), 1) is None and not tracker.history
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert tracker.step(nn.Linear(2, 2), 2) is not None


def test_the_command_logs_eigenvalues_by_steps_also_after_a_resumption(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = ["--device", "cpu", "--log", "tensorboard", "--track-curvature", "2"]
    options += ["--data", "gaussians", "--out", str(tmp_path)]
    first = CliRunner().invoke(train_command, [*options, "--epochs", "1"])
    assert first.exit_code == 0, first.output
    done = rows(tmp_path)
    more = [*options, "--epochs", "2", "--resume"]
    assert CliRunner().invoke(train_command, more).exit_code == 0
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / "curvature"))
    events.Reload()
    logged = events.Scalars("curvature/top_eigenvalue")
    found = rows(tmp_path)
    assert len(found) > len(done) == 2
    assert [e.step for e in logged] == [r["step"] for r in found]
    assert [e.value for e in logged] == pytest.approx([r["values"][0] for r in found], rel=1e-6)
    plain = CliRunner().invoke(train_command, [*options[:2], *options[6:], "--overwrite"])
    assert plain.exit_code == 0 and not list((tmp_path / "tensorboard").rglob("events*"))


@pytest.mark.distributed
def test_of_two_processes_one_measures_and_both_train_as_without(tmp_path):
    found: dict[tuple[int, bool], dict[str, torch.Tensor]] = {}
    for tracked in (False, True):
        finish([start(train_together, rank, tmp_path, tracked) for rank in range(2)])
        for rank in range(2):
            file = tmp_path / f"{rank}-{tracked}.pt"
            found[rank, tracked] = torch.load(file, weights_only=True)
    assert found[0, True].pop("steps").tolist() == [2, 4, 6]
    assert not found[1, True].pop("steps").tolist()
    for rank in range(2):
        for name, value in found[rank, True].items():
            assert torch.equal(value, found[rank, False][name]), name
