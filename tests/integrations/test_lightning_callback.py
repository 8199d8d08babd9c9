"""Curvature along fits by Lightning itself: its numbers, its loggers, and that the fit stays."""

import csv
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import flatkit
from flatkit.errors import InvalidArgumentError
from flatkit.integrations.lightning import PerturbedModuleMixin
from flatkit.optim import SAM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library, at import
    lightning: Any = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from flatkit.integrations.lightning import CurvatureCallback

# Warnings of the library, about loaders and workers.
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


class Net(PerturbedModuleMixin, lightning.LightningModule):
    def __init__(self, kind: str = "sgd") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.net = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index) -> Any:
        inputs, targets = batch
        return nn.functional.cross_entropy(self(inputs), targets)

    def configure_optimizers(self):
        base = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return SAM(base, rho=0.1, model=self) if self.kind == "sam" else base


def data() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs.sum(1) > 0).long()


def fit(model, tmp_path, *callbacks: Any, epochs: int = 2, **settings: Any):
    torch.manual_seed(5)  # of the order of the samples, and of dropout
    dataset = torch.utils.data.TensorDataset(*data())
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    settings = {"accelerator": "cpu", "logger": False, **settings}
    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        callbacks=list(callbacks), log_every_n_steps=1, **settings,
    )  # fmt: skip
    trainer.fit(model, loader)
    return trainer


def state(trainer) -> list[torch.Tensor]:
    """All that a step leaves: weights, buffers, gradients, momenta, and the random state."""
    module, inner = trainer.lightning_module, trainer.optimizers[0]
    momenta = [entry["momentum_buffer"] for entry in inner.state.values()]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [*module.state_dict().values(), *gradients, *momenta, torch.get_rng_state()]


@pytest.mark.parametrize("kind", ["sgd", "sam"])
@pytest.mark.parametrize("given", [True, False], ids=["data", "first batch"])
def test_a_fit_ends_with_the_same_bits_with_and_without(kind, given, tmp_path):
    plain = state(fit(Net(kind), tmp_path))
    callback = CurvatureCallback(
        "cross_entropy", data() if given else None, every_n_steps=1, max_share=None
    )
    watched = state(fit(Net(kind), tmp_path, callback))
    assert len(plain) == len(watched) > 12
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert callback.tracker is not None
    assert [row.step for row in callback.tracker.history] == list(range(1, 9))


def test_the_loggers_get_what_flatkit_finds_at_the_same_weights(tmp_path):
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(str(tmp_path), name="tb")]
    callback = CurvatureCallback(
        "cross_entropy", data(), every_n_epochs=2, max_share=None, tolerance=1e-4
    )
    trainer = fit(Net(), tmp_path, callback, logger=loggers)
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("curvature/top_eigenvalue")]
    assert [row["step"] for row in rows] == ["8"]
    objective = flatkit.Objective(trainer.lightning_module.net, "cross_entropy", data())
    dense = flatkit.HessianOperator(objective)
    matrix = torch.stack([dense.matvec(row) for row in torch.eye(dense.size)])
    top, total = torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1], matrix.trace()
    assert float(rows[0]["curvature/top_eigenvalue"]) == pytest.approx(float(top), rel=1e-3)
    assert float(rows[0]["curvature/trace"]) == pytest.approx(float(total), rel=0.25)
    norm = float(objective.gradient().norm())
    assert float(rows[0]["curvature/gradient_norm"]) == pytest.approx(norm, rel=1e-5)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb" / "version_0"))
    events.Reload()
    (event,) = events.Scalars("curvature/top_eigenvalue")
    assert event.step == 8 and event.value == pytest.approx(float(top), rel=1e-3)


def test_a_part_of_the_module_can_be_named_and_a_wrong_one_is_said_once(tmp_path):
    callback = CurvatureCallback("cross_entropy", data(), every_n_steps=4, model="net")
    fit(Net(), tmp_path, callback)
    assert callback.tracker is not None and callback.tracker.history[0].values[0] > 0
    wrong = CurvatureCallback("cross_entropy", data(), every_n_steps=1, model="head")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Net(), tmp_path, wrong)
    said = [str(w.message) for w in caught if "could not be measured" in str(w.message)]
    assert len(said) == 1 and "no part 'head'; its parts are net" in said[0]
    assert wrong.tracker is not None and not wrong.tracker.history


def test_data_that_fail_do_not_end_the_fit(tmp_path):
    bad = CurvatureCallback("cross_entropy", (torch.ones(4, 3), torch.ones(4).long()))
    trainer = fit(Net(), tmp_path, bad)
    assert trainer.global_step == 8


def test_settings_are_refused_before_the_fit():
    with pytest.raises(InvalidArgumentError, match="not both"):
        CurvatureCallback("mse", every_n_steps=1, every_n_epochs=1)
    with pytest.raises(InvalidArgumentError, match="takes every_n_steps"):
        CurvatureCallback("mse", every=10)
    with pytest.raises(InvalidArgumentError, match="measures"):
        CurvatureCallback("mse", measures=("sharpness",))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="max_share"):
        CurvatureCallback("mse", max_share=0.0)


@pytest.mark.parametrize("library", ["lightning", "transformers"])
def test_the_mixins_load_no_library_and_a_missing_one_is_named(library):
    code = """
import sys
import flatkit.integrations
from flatkit.integrations import PerturbedModuleMixin, PerturbedTrainerMixin
from flatkit.errors import MissingDependencyError
assert not {"lightning", "pytorch_lightning", "transformers"} & sys.modules.keys()
for name in ("lightning.pytorch", "lightning", "pytorch_lightning", "transformers"):
    sys.modules[name] = None
name = {"lightning": "LightningCurvatureCallback", "transformers": "HuggingFaceCurvatureCallback"}
try:
    getattr(flatkit.integrations, name["LIBRARY"])
except MissingDependencyError as error:
    assert "flatkit[integrations]" in str(error) and "LIBRARY" in str(error)
else:
    raise AssertionError
""".replace("LIBRARY", library)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
