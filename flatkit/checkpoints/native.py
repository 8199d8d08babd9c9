"""flatkit's own checkpoint: tensors, and names and arguments that rebuild the rest. Never code.

The file is a torch.save of one dictionary:

| key | what |
|---|---|
| `flatkit_checkpoint` | the number of this format, 1 |
| `flatkit` | version of the package that wrote it |
| `model`, `loss` | `{"name", "kwargs"}` in `flatkit.models.MODELS`, `flatkit.losses.LOSSES` |
| `data` | the same in `flatkit.data.DATASETS`, and the `sha256` of the tensors |
| `state_dict` | of the model |
| `epoch`, `config`, `history` | epochs done, settings, one row an epoch |
| `training_state` | optimizer and random states, with which training goes on bit for bit |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatkit.checkpoints.fitting import load_state
from flatkit.checkpoints.safe_file import read_safely
from flatkit.checkpoints.schema import check_content
from flatkit.data import DATASETS, Dataset
from flatkit.errors import CheckpointError, InvalidArgumentError
from flatkit.files import write_atomically
from flatkit.losses import LOSSES, Loss
from flatkit.models import MODELS
from flatkit.registry import Registry, call_text, plain
from flatkit.task import Task
from flatkit.version import __version__

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint in memory; nothing of it has been executed, and nothing is built yet.

    Attributes:
        path: as the caller gave it.
        sha256: of the file.
        format: e.g. `flatkit 1`.
        version: of the flatkit that wrote it.
        model: `{"name", "kwargs"}`.
        data: `{"name", "kwargs", "sha256"}`; the last is of the tensors.
        loss: `{"name", "kwargs"}`.
        state_dict: name -> tensor, on the CPU.
        epoch: epochs of training done.
        config: settings of the training.
        history: one mapping an epoch.
        training_state: optimizer and random states.
    """

    path: str
    sha256: str
    format: str
    version: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    loss: Mapping[str, Any]
    state_dict: Mapping[str, Tensor]
    epoch: int
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    training_state: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder of a `ckpt.pt`, else folder and file: `gam`, `gam/epoch-0010`."""
        path = Path(self.path).absolute()
        return path.parent.name if path.stem == "ckpt" else f"{path.parent.name}/{path.stem}"

    def build_model(self) -> nn.Module:
        """Return the model with the stored weights, in eval mode; random states are untouched.

        Raises:
            CheckpointError: unknown model, or tensors that do not fit it, each named.
        """
        with torch.random.fork_rng(devices=[]):
            model = self._build(MODELS, self.model)
        load_state(model, self.state_dict, where=f"{self.path} and {call_text(**self.model)}")
        return model.eval()

    def build_data(self) -> Dataset:
        """Return the data on which the model was trained.

        Raises:
            CheckpointError: unknown data, or the rebuilt tensors differ from those trained on.
            MissingDependencyError: a package that holds the data is not installed.
        """
        spec = {key: self.data[key] for key in ("name", "kwargs")}
        dataset: Dataset = self._build(DATASETS, spec)
        digest = dataset.sha256()
        if digest != self.data["sha256"]:
            raise CheckpointError(
                f"{self.path} was trained on other data than {call_text(**spec)} gives here "
                f"(sha256 {self.data['sha256'][:12]}, here {digest[:12]}); "
                "install the package versions with which it was trained"
            )
        return dataset

    def build_loss(self) -> Loss:
        """Return the loss that was minimised.

        Raises:
            CheckpointError: unknown loss.
        """
        return self._build(LOSSES, self.loss)

    def task(self) -> Task:
        """Return model, loss and data, ready to be analyzed.

        Raises:
            CheckpointError: as the builders; or a weight is NaN or infinite.
        """
        for name, count in self.non_finite().items():
            raise CheckpointError(
                f"{self.path} cannot be analyzed: {count} values of {name} are NaN or infinite; "
                "use an earlier checkpoint of the run"
            )
        dataset = self.build_data()
        return Task(
            model=self.build_model(),
            loss=self.build_loss(),
            data=dataset.train,
            test_data=dataset.test,
            name=self.name,
        )

    def non_finite(self) -> dict[str, int]:
        """Return how many values are NaN or infinite, for the tensors that have any."""
        counts = {key: int((~value.isfinite()).sum()) for key, value in self.state_dict.items()}
        return {key: count for key, count in counts.items() if count}

    def describe(self) -> dict[str, Any]:
        """Return what a report says about its checkpoint, ready for JSON."""
        data_and_model = ("data", "data_kwargs", "model", "model_kwargs")
        training = {
            key: value
            for key, value in self.config.items()
            if value is not None and key not in data_and_model
        }
        return {
            "path": self.path,
            "name": self.name,
            "sha256": self.sha256,
            "format": self.format,
            "flatkit": self.version,
            "epoch": self.epoch,
            "model": plain(self.model),
            "data": plain(self.data),
            "loss": plain(self.loss),
            "optimizer": self.config.get("optimizer"),
            "training": plain(training),
        }

    def _build(self, registry: Registry, spec: Mapping[str, Any]) -> Any:
        try:
            return registry.build(spec["name"], **spec["kwargs"])
        except (InvalidArgumentError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} cannot be rebuilt by flatkit {__version__}: {error}"
            ) from error


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint without executing anything in it.

    Tensors that are NaN or infinite load, so that they can be looked at; `Checkpoint.task`
    refuses them.

    Raises:
        CheckpointError: one line that says why the file is not a checkpoint that can be read.

    >>> import tempfile
    >>> spec = {"name": "mlp", "kwargs": {"in_shape": [3], "classes": 2, "hidden": []}}
    >>> data = {"name": "gaussians", "kwargs": {}, "sha256": ""}
    >>> state = MODELS.build("mlp", **spec["kwargs"]).state_dict()
    >>> file = Path(tempfile.mkdtemp()) / "ckpt.pt"
    >>> loss = {"name": "cross_entropy", "kwargs": {}}
    >>> checkpoint = load(save(file, model=spec, data=data, loss=loss, state_dict=state))
    >>> checkpoint.format, checkpoint.build_model().output
    ('flatkit 1', Linear(in_features=3, out_features=2, bias=True))
    """
    content, sha256 = read_safely(path)
    check_content(content, path=path, newest=FORMAT)
    return Checkpoint(
        path=str(path),
        sha256=sha256,
        format=f"flatkit {content['flatkit_checkpoint']}",
        version=content["flatkit"],
        model=content["model"],
        data=content["data"],
        loss=content["loss"],
        state_dict=content["state_dict"],
        epoch=content["epoch"],
        config=content["config"],
        history=content["history"],
        training_state=content["training_state"],
    )


def save(
    path: str | Path,
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    loss: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    epoch: int = 0,
    config: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    training_state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint, whole or not at all; the arguments are the attributes of `Checkpoint`.

    Raises:
        OutputError: the file cannot be written.
        InvalidArgumentError: a setting that is not plain data.
        CheckpointError: an entry without which the file could not be loaded is missing.
    """
    content = {
        "flatkit_checkpoint": FORMAT,
        "flatkit": __version__,
        "model": plain(model, "model"),
        "data": plain(data, "data"),
        "loss": plain(loss, "loss"),
        "state_dict": dict(state_dict),
        "epoch": epoch,
        "config": plain(config or {}, "config"),
        "history": plain(history, "history"),
        "training_state": dict(training_state or {}),
    }
    check_content(content, path=path, newest=FORMAT)
    return write_atomically(path, lambda stream: torch.save(content, stream))
