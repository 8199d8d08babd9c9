"""Curvature along trainings by the Trainer of transformers, of a tiny BERT."""

import warnings
from typing import Any

import pytest
import torch

import flatkit
from flatkit.errors import InvalidArgumentError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library, at import
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from flatkit.integrations.hugging_face import CurvatureCallback
    from tests.integrations.test_hugging_face import bert, rows

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # of the library

TAGS = {f"curvature/{name}" for name in ("top_eigenvalue", "trace", "gradient_norm", "loss")}


def trainer_of(tmp_path, dropout: float = 0.1, **settings: Any):
    model = bert()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    settings = {"report_to": [], "logging_steps": 2, "num_train_epochs": 2, **settings}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no", seed=3,
        per_device_train_batch_size=8, learning_rate=5e-3, **settings,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=rows())


def state(trainer) -> list[torch.Tensor]:
    moments = [t for entry in trainer.optimizer.state.values() for t in entry.values()]
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    weights = list(trainer.model.state_dict().values())
    return [*weights, *gradients, *moments, torch.get_rng_state()]


def test_a_training_ends_with_the_same_bits_and_the_same_log(tmp_path):
    plain = trainer_of(tmp_path)
    plain.train()
    before = state(plain)  # the trainers share the global random state
    watched = trainer_of(tmp_path)
    callback = CurvatureCallback(every_n_steps=2, max_share=None).attach(watched)
    watched.train()
    after = state(watched)
    assert len(before) == len(after) > 40
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    losses = [
        [row["loss"] for row in t.state.log_history if "loss" in row] for t in (plain, watched)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert callback.tracker is not None
    assert [row.step for row in callback.tracker.history] == [2, 4, 6, 8]


def test_its_reporting_gets_what_flatkit_finds_at_the_same_weights(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = trainer_of(tmp_path, report_to=["tensorboard"])
    callback = CurvatureCallback(every_n_epochs=2, max_share=None, tolerance=1e-4)
    callback.attach(trainer)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if row.keys() >= TAGS]
    assert row["step"] == 8
    batch = {key: torch.stack([row[key] for row in rows()]) for key in ("input_ids", "labels")}
    objective = flatkit.Objective(trainer.model, "model", batch)
    assert row["curvature/loss"] == pytest.approx(objective.loss(), rel=1e-5)
    assert row["curvature/gradient_norm"] == pytest.approx(
        float(objective.gradient().norm()), rel=1e-4
    )
    found = flatkit.lanczos(
        flatkit.HessianOperator(objective), tolerance=1e-4, generator=torch.Generator()
    )
    top = float(found.value[0])
    assert row["curvature/top_eigenvalue"] == pytest.approx(top, rel=1e-3, abs=1e-6)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (written,) = tmp_path.rglob("events.out*")  # transformers before 5 chooses the place
    events = EventAccumulator(str(written.parent))
    events.Reload()
    (event,) = events.Scalars("train/curvature/top_eigenvalue")
    assert event.step == 8 and event.value == pytest.approx(top, rel=1e-3, abs=1e-6)


def test_a_callback_that_knows_no_trainer_is_refused_before_the_first_step(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.add_callback(CurvatureCallback(every_n_steps=1))
    with pytest.raises(InvalidArgumentError, match=r"attach\(trainer\)"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_loss_that_fails_does_not_end_the_training(tmp_path):
    trainer = trainer_of(tmp_path)

    def fails(outputs, targets):
        raise RuntimeError("no such loss")

    CurvatureCallback(fails, every_n_steps=1).attach(trainer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(w.message) for w in caught if "could not be measured" in str(w.message)]
    assert trainer.state.global_step == 8
    assert len(said) == 1 and "no such loss" in said[0]
