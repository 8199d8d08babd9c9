"""Curves over the checkpoints of a training: overlaps, limits of steps, resumption, refusals."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import flatkit
from flatkit.comparison.curves import OVERLAP, curves, number, stability, stability_of
from flatkit.comparison.epochs import stops_of
from flatkit.comparison.overlap import subspace_overlap
from flatkit.errors import InvalidArgumentError
from flatkit.render.figures.track import track_figure
from flatkit.training import TrainingConfig, train
from flatkit_cli.track import track as track_command

pytestmark = pytest.mark.long

SETTINGS = {
    "data": "gaussians",
    "data_kwargs": {"samples": 60},
    "model_kwargs": {"hidden": (4,), "activation": "tanh"},
    "batch_size": 20,
    "epochs": 5,
    "save_every": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "sgd"
    train(TrainingConfig(**SETTINGS), out)
    return out


def symmetric(generator, size=12):
    basis, _ = np.linalg.qr(generator.standard_normal((size, size)))
    values = np.sort(generator.uniform(0, 1, size))[::-1] + np.array([3.0, 2, 1, *[0] * (size - 3)])
    return basis, values, (basis * values) @ basis.T


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1e-2])
def test_the_overlap_is_that_of_the_true_spaces_within_its_error(noise):
    """Computed vectors are turned away from the true ones; their residuals are computed densely."""
    generator = np.random.default_rng(0)
    found_bounds = 0
    for _ in range(50):
        truths, computed, values, errors = [], [], [], []
        for _ in range(2):
            basis, _, matrix = symmetric(generator)
            truths.append(basis[:, :2])
            turned, _ = np.linalg.qr(basis[:, :3] + noise * generator.standard_normal((12, 3)))
            turned = turned * np.sign((turned * basis[:, :3]).sum(0))
            ritz = np.array([v @ matrix @ v for v in turned.T])
            computed.append(turned.T)
            values.append(list(ritz))
            errors.append([np.linalg.norm(matrix @ v - r * v) for v, r in zip(turned.T, ritz)])  # noqa: B905
        given = {"values": tuple(values), "errors": tuple(errors)}
        overlaps, bounds = subspace_overlap(*computed, **given)
        for j, (overlap, bound) in enumerate(zip(overlaps, bounds, strict=True), start=1):
            one, other = (truth[:, :j] @ truth[:, :j].T for truth in truths)
            if bound is not None:
                found_bounds += 1
                assert abs(overlap - np.trace(one @ other) / j) <= bound + 1e-12
    assert found_bounds > 60


def test_the_error_of_an_overlap_is_no_wider_than_a_vector_that_is_turned_needs():
    turn, apart = 1e-3, np.pi / 4
    truth, other = np.eye(2), rotated(apart)
    computed = rotated(turn)
    values = [float(v @ np.diag([2.0, 1.0]) @ v) for v in computed]
    residual = float(np.linalg.norm(np.diag([2.0, 1.0]) @ computed[0] - values[0] * computed[0]))
    given = {"values": (values, [2.0, 1.0]), "errors": ([residual] * 2, [0.0] * 2)}
    (overlap,), (bound,) = subspace_overlap(computed, other, **given)
    off = abs(overlap - float(truth[0] @ other[0]) ** 2)
    assert bound is not None and 0.6 * bound < off <= bound


def rotated(angle):
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def test_an_overlap_of_eigenvalues_that_do_not_stand_apart_has_no_error_bar():
    eye = np.eye(4)[:3]
    equal = ([2.0, 2.0, 1.0], [2.0, 2.0, 1.0])
    _, errors = subspace_overlap(eye, eye, values=equal, errors=([1e-3] * 3, [1e-3] * 3))
    assert errors[0] is None and errors[1] is not None and errors[1] < 1e-2


@pytest.mark.parametrize("further", [{}, {"nesterov": True}, {"dampening": 0.5}])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_steps_diverge_beyond_the_limit_and_not_below(further, momentum, decay):
    if "nesterov" in further and not momentum:
        return
    training = {
        "optimizer": "sgd", "lr": 0.1, "momentum": momentum, "weight_decay": decay, "epochs": 1,
        "schedule": "none", "optimizer_kwargs": further,
    }  # fmt: skip
    known = stability(training, 1)
    assert known is not None and known.two_over_lr == pytest.approx(20.0)

    def end(curvature: float) -> float:
        theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD(
            [theta], lr=0.1, momentum=momentum, weight_decay=decay, **further
        )
        for _ in range(3000):
            optimizer.zero_grad()
            (curvature * theta.square().sum() / 2).backward()
            optimizer.step()
        return float(theta.detach().abs())

    assert end(0.99 * known.limit) < 1e-3
    assert not end(1.01 * known.limit) < 1e3  # infinite or NaN too


def test_no_limit_is_named_where_the_steps_are_scaled_or_unknown():
    assert stability({"optimizer": "adamw", "epochs": 3}, 1) is None
    assert stability({}, 1) is None and stability({"optimizer": "of tomorrow"}, 1) is None
    wrapped = stability({"optimizer": "sam", "lr": 0.5, "schedule": "none", "momentum": 0.0}, 1)
    assert wrapped is not None and (wrapped.wrapped, wrapped.two_over_lr) == ("sam", 4.0)


def dense(path):
    """Eigenvalues and vectors of the Hessian of a checkpoint, in float64, largest first."""
    task = flatkit.load(path).task()
    objective = task.objective(flatkit.AnalysisSettings(dtype="float64"))
    operator = flatkit.HessianOperator(objective)
    rows = torch.eye(operator.size, dtype=torch.float64)
    matrix = torch.stack([operator.matvec(row) for row in rows]).numpy()
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return values[::-1], vectors[:, ::-1]


def test_a_run_is_measured_in_the_order_of_its_epochs_and_its_overlap_is_the_dense_one(run):
    found = flatkit.track(run, dtype="float64", progress=False, tolerance=1e-8)
    assert [entry.epoch for entry in found.entries] == [2, 4, 5]  # ckpt.pt is the fifth
    assert found.entries[0].name == "sgd, epoch 2"
    files = [run / name for name in ("epoch-0002.pt", "epoch-0004.pt", "ckpt.pt")]
    spectra = [dense(file) for file in files]
    assert found.entries[0].report.find(OVERLAP) is None
    for place in (1, 2):
        entry = found.entries[place]
        alone = flatkit.analyze(files[place], measures=["loss"], dtype="float64", progress=False)
        assert number(entry, "loss") == (alone.result("loss", split="train").value, 0.0)
        top = number(entry, "top_eigenvalues")
        assert top is not None and top[0] == pytest.approx(spectra[place][0][0], rel=1e-6)
        overlap = entry.report.result(OVERLAP)
        for j in (1, 2):
            a, b = (spectra[n][1][:, :j] for n in (place - 1, place))
            truth = np.linalg.norm(a.T @ b) ** 2 / j
            assert abs(overlap.value[j - 1] - truth) <= max(1e-6, overlap.error[j - 1] or 0.0)
    limits = [stability_of(entry) for entry in found.entries]
    assert all(limits) and limits[0].two_over_lr < limits[-1].two_over_lr  # type: ignore[union-attr]


def test_files_of_vectors_go_in_the_end_or_stay_where_they_were_asked_for(run, tmp_path):
    journal = tmp_path / "a.json.journal"
    measured = {"measures": ["top_eigenvalues"], "progress": False}
    found = flatkit.track(run, journal=journal, **measured)
    assert not list(tmp_path.glob("*eigenvectors*"))
    assert "npy" not in found.to_json()
    kept = flatkit.track(run, eigenvectors=tmp_path / "vectors", **measured)
    results = [entry.report.result("top_eigenvalues") for entry in kept.entries]
    names = [result.settings["eigenvectors"] for result in results]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "vectors").iterdir())
    vectors = np.load(tmp_path / "vectors" / names[0])
    assert vectors @ vectors.T == pytest.approx(np.eye(3), abs=1e-5)


def test_a_track_that_was_stopped_goes_on_to_the_same_numbers(run, tmp_path, monkeypatch):
    measured = {"measures": ["loss", "top_eigenvalues"], "progress": False, "jobs": 1}
    whole = flatkit.track(run, **measured)
    journal, calls = tmp_path / "t.journal", []
    from flatkit.comparison import compare as module
    from flatkit.measures.report import analyze

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return analyze(*args, **kwargs)

    monkeypatch.setattr(module, "analyze", counted)
    with pytest.raises(KeyboardInterrupt):
        flatkit.track(run, journal=journal, **measured)
    again = flatkit.track(run, journal=journal, **measured)
    assert len(calls) == 4  # the first report was kept, and its vectors
    for one, other in zip(whole.entries, again.entries, strict=True):
        for measure in ("loss", "top_eigenvalues", OVERLAP):
            a, b = one.report.find(measure), other.report.find(measure)
            assert (a and (a.value, a.error)) == (b and (b.value, b.error))


def test_the_command_shows_writes_and_draws(run, tmp_path):
    options = ["--measures", "loss,accuracy,top_eigenvalues", "--json", str(tmp_path / "t.json")]
    done = CliRunner().invoke(
        track_command, [str(run), *options, "--figures", str(tmp_path / "figures")]
    )
    assert done.exit_code == 0, done.output
    assert "sgd, epochs 2 … 5" in done.output and "2/η" in done.output
    saved = flatkit.load_results(tmp_path / "t.json")
    assert [entry.epoch for entry in saved.entries] == [2, 4, 5]
    assert (tmp_path / "figures" / "track.svg").is_file()
    titles = [axis.get_title() for axis in track_figure(saved).axes]
    assert titles == ["loss", "accuracy", "λmax, and 2/η", "overlap of eigenvectors"]
    top = track_figure(saved).axes[2]
    heights = [float(np.asarray(line.get_ydata())[0]) for line in top.lines]
    first = next(iter(curves(saved).values()))[0]
    known = stability_of(first)
    assert known is not None and known.two_over_lr in heights and known.limit in heights
    assert json.loads((tmp_path / "t.json").read_text())["comparison"][0]["epoch"] == 2


def test_what_is_no_run_is_refused_with_what_would_be_one(run, tmp_path):
    with pytest.raises(InvalidArgumentError, match="save-every"):
        stops_of([tmp_path])
    with pytest.raises(
        InvalidArgumentError, match=r"two epochs, and of sgd .*ckpt\.pt alone, of epoch 5"
    ):
        stops_of([run / "ckpt.pt"])
    for name in ("a-3.pt", "b-3.pt"):
        torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / name)
    with pytest.raises(InvalidArgumentError, match="both of epoch 3"):
        stops_of([tmp_path])
    (tmp_path / "b-3.pt").rename(tmp_path / "best.pt")
    with pytest.raises(InvalidArgumentError, match="of which epoch"):
        stops_of([tmp_path])
    (tmp_path / "best.pt").rename(tmp_path / "step_12.pt")
    found = stops_of([tmp_path / "*.pt"])
    assert [stop.epoch for stop in found] == [3, 12]  # by number, not by name


def test_the_last_one_again_is_no_epoch_among_steps(tmp_path):
    """`last.ckpt` of Lightning was drawn at its epoch, on an axis of steps."""
    lightning = tmp_path / "lightning"
    lightning.mkdir()

    def save(name, epoch, step):
        content = {"epoch": epoch, "global_step": step, "state_dict": {"w": torch.ones(1)}}
        torch.save(content, lightning / name)

    for epoch in range(3):
        save(f"epoch={epoch}-step={100 * (epoch + 1)}.ckpt", epoch, 100 * (epoch + 1))
    save("last.ckpt", 2, 300)
    for source in (lightning, lightning / "*.ckpt"):
        assert [stop.epoch for stop in stops_of([source])] == [100, 200, 300]
    save("last.ckpt", 3, 350)  # stopped between two that are kept
    assert [stop.epoch for stop in stops_of([lightning])] == [100, 200, 300, 350]


def test_folders_of_one_name_are_two_runs(tmp_path):
    """`flatkit track a/gam b/gam` was refused with the advice to use two folders."""
    folders = [tmp_path / name / "gam" for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        for epoch in (1, 2):
            torch.save({"w": torch.ones(1)}, folder / f"net-{epoch}.pt")
    found = [(stop.run, stop.epoch) for stop in stops_of(folders)]
    assert found == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_weights_beside_the_checkpoints_of_a_trainer_are_let_be(tmp_path):
    for folder in ("checkpoint-500", "checkpoint-1000", "."):
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.save({"w": torch.ones(1)}, tmp_path / folder / "pytorch_model.bin")
        torch.save({"lr": 1e-3}, tmp_path / folder / "training_args.bin")
    assert [stop.epoch for stop in stops_of([tmp_path])] == [500, 1000]


TASK = """
import torch
import flatkit

def build():
    torch.manual_seed(0)
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    return flatkit.Task(net, "cross_entropy", (x, (x.sum(1) > 0).long()))
"""


def test_checkpoints_of_another_program_are_tracked_with_their_task(tmp_path):
    file, weights = tmp_path / "my_task.py", tmp_path / "weights"
    file.write_text(TASK)
    weights.mkdir()
    task = flatkit.checkpoints.load_task(f"{file}:build")
    x, y = task.data
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.5)
    losses = []
    for epoch in range(1, 13):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(task.model(x), y).backward()
        optimizer.step()
        if epoch in (2, 11):
            content = {"epoch": epoch, "model": task.model.state_dict()}
            torch.save(content, weights / f"net-{epoch}.pth")
            with torch.no_grad():
                losses.append(float(torch.nn.functional.cross_entropy(task.model(x), y)))
    saved = tmp_path / "t.json"
    done = CliRunner().invoke(
        track_command, [str(weights), "--task", f"{file}:build", "--json", str(saved)]
    )
    assert done.exit_code == 0, done.output
    assert "2/η" not in done.output  # nothing is known of its optimizer
    comparison = flatkit.load_results(saved)
    entries = comparison.entries
    assert "λmax" in [axis.get_title() for axis in track_figure(comparison).axes]
    assert [entry.epoch for entry in entries] == [2, 11]
    found = [number(entry, "loss") for entry in entries]
    assert [pair and pair[0] for pair in found] == pytest.approx(losses, rel=1e-5)
    assert entries[1].report.find(OVERLAP) is not None


def test_numbers_in_names_that_count_seeds_are_no_epochs(tmp_path):
    """Three seeds of one loop, each saved at its end, were once drawn as a training of 3 epochs."""

    def save(name, **beside):
        torch.save({**beside, "model": {"weight": torch.ones(1)}}, tmp_path / name)

    def epochs(pattern):
        return [stop.epoch for stop in stops_of([tmp_path / pattern])]

    for seed in range(3):
        save(f"sgd-seed{seed}.pt", epoch=14)
        save(f"net-step{seed}.pt", epoch=0)
        save(f"lit{seed}.pt", epoch=0, global_step=seed)
        save(f"own-{seed}.pt", epoch=seed + 1)  # a loop that saves its next epoch
        save(f"plain-{seed}.pt")
    with pytest.raises(InvalidArgumentError, match=r"both of epoch 14, .*seeds; flatkit"):
        stops_of([tmp_path / "sgd-*.pt"])
    for counted in ("net-*.pt", "lit*.pt", "own-*.pt", "plain-*.pt"):
        assert epochs(counted) == [0, 1, 2]
    with pytest.raises(InvalidArgumentError, match=r"sgd-seed1\.pt alone, of epoch 1; name"):
        stops_of([tmp_path / "sgd-seed1.pt"])
    with pytest.raises(InvalidArgumentError, match="curve is that of one training"):
        stops_of([tmp_path / "sgd-*.pt", tmp_path / "plain-*.pt"])
