"""What the callbacks measure arrives in W&B (offline) and MLflow, by the libraries' own loggers."""

import importlib.util
import warnings
from importlib import import_module
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries, at import
    pytest.importorskip("lightning.pytorch")
    pytest.importorskip("transformers")
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    from flatkit.integrations import hugging_face, lightning
    from tests.integrations.test_hugging_face_callback import TAGS, trainer_of
    from tests.integrations.test_lightning_callback import Net, data, fit

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries

STEPS = [2, 4, 6, 8]


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; this was not tried: pip install {package}")


def by_lightning(tmp_path, logger):
    """Return what was measured at each step of a fit."""
    callback = lightning.CurvatureCallback("cross_entropy", data(), every_n_steps=2, max_share=None)
    fit(Net(), tmp_path, callback, logger=logger)
    return found(callback)


def by_hugging_face(tmp_path, report_to):
    """Return what was measured at each step of a training."""
    trainer = trainer_of(tmp_path, report_to=[report_to], logging_steps=2)
    callback = hugging_face.CurvatureCallback(every_n_steps=2, max_share=None).attach(trainer)
    trainer.train()
    return found(callback)


def found(callback) -> dict[int, dict[str, float]]:
    history = {row.step: row.scalars() for row in callback.tracker.history}
    assert list(history) == STEPS and all(row.keys() == TAGS for row in history.values())
    return history


@pytest.fixture
def offline(tmp_path, monkeypatch):
    needs("wandb")
    wandb: Any = import_module("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield wandb
    wandb.finish()


def test_a_fit_by_lightning_arrives_in_wandb(offline, tmp_path):
    wanted = by_lightning(tmp_path, WandbLogger(project="fit", save_dir=tmp_path, offline=True))
    summary = dict(offline.run.summary)
    assert {tag: summary[tag] for tag in TAGS} == pytest.approx(wanted[8])
    assert summary["trainer/global_step"] == 8
    offline.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_training_by_hugging_face_arrives_in_wandb(offline, tmp_path):
    wanted = by_hugging_face(tmp_path, "wandb")
    summary = dict(offline.run.summary)
    assert {tag: summary[f"train/{tag}"] for tag in TAGS} == pytest.approx(wanted[8])
    assert summary["train/global_step"] == 8 and summary["train/loss"] > 0


@pytest.fixture(params=["file", "sqlite"])
def store(request, tmp_path, monkeypatch):
    """The address of a store of MLflow, in files or in a database."""
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow 3 asks for
    paths = {"file": f"file:{tmp_path}/mlruns", "sqlite": f"sqlite:///{tmp_path}/mlflow.db"}
    return paths[request.param]


def stored(address: str) -> dict[int, dict[str, float]]:
    """Return what a store holds of the one run in it, by step."""
    client: Any = import_module("mlflow.tracking").MlflowClient(address)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    rows: dict[int, dict[str, float]] = {}
    for tag in TAGS:
        for metric in client.get_metric_history(run.info.run_id, tag):
            rows.setdefault(metric.step, {})[tag] = metric.value
    return rows


def same(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> bool:
    return one.keys() == other.keys() and all(one[s] == pytest.approx(other[s]) for s in one)


def test_a_fit_by_lightning_arrives_in_mlflow(store, tmp_path):
    wanted = by_lightning(tmp_path, MLFlowLogger("fit", tracking_uri=store))
    assert same(stored(store), wanted)


def test_a_training_by_hugging_face_arrives_in_mlflow(store, tmp_path, monkeypatch):
    mlflow: Any = import_module("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    try:
        wanted = by_hugging_face(tmp_path, "mlflow")
    finally:
        mlflow.end_run()
    assert same(stored(store), wanted)
