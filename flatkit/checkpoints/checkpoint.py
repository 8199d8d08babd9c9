"""A checkpoint in memory, whatever wrote it."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from flatkit.checkpoints.adapters import with_base
from flatkit.checkpoints.conversions import in_numbers
from flatkit.checkpoints.placing import Stored, Wishes, place
from flatkit.checkpoints.readers.folders import stem
from flatkit.checkpoints.recipe import Recipe, build_data, build_loss, build_model
from flatkit.data.dataset import Dataset
from flatkit.errors import CheckpointError, InvalidArgumentError
from flatkit.objective.losses import Loss
from flatkit.objective.task import Task
from flatkit.registry import call_text, plain
from flatkit.results.showing import Shown
from flatkit.version import __version__


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Shown):
    """A checkpoint in memory; nothing of it has been executed, and nothing is built yet.

    Only flatkit's own files name model, data and loss; of all others these are empty, and
    the weights are put into a model of the caller's by `load_into`.

    Attributes:
        path: as the caller gave it.
        sha256: of the file; of a folder, of a list of the digests of the files that were read.
        format: e.g. `flatkit 1`, `safetensors`.
        state_dict: name -> tensor, on the CPU.
        entry: the part of the file that holds the weights; empty for the whole of it.
        others: further parts that hold weights, e.g. `ema`.
        beside: numbers and texts that stand beside the weights.
        unread: name -> what it is, of tensors among the weights that flatkit does not read.
        versions: module -> what torch noted of it when it saved, which its load hooks ask for.
        extra: what modules saved by `get_extra_state`, where it is plain data.
        adapter: the `adapter_config.json` of an adapter of PEFT.
        version: of the flatkit that wrote it.
        model: `{"name", "kwargs"}`.
        data: `{"name", "kwargs", "sha256"}`; the last is of the tensors.
        loss: `{"name", "kwargs"}`.
        task_file: in place of these three, of a training of the user's own task: `function`
            (`FILE.py:FUNCTION`), `sha256` of the file, `data_sha256`, and `changes` of the data.
        epoch: epochs of training done.
        config: settings of the training.
        history: one mapping an epoch.
        training_state: optimizer and random states.
    """

    path: str
    sha256: str
    format: str
    state_dict: Mapping[str, Tensor]
    entry: str = ""
    others: Sequence[str] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] = field(default_factory=dict)
    task_file: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    training_state: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return a line: which file, of what kind, how large, how far trained."""
        sizes = [tensor.numel() for tensor in self.state_dict.values()]
        facts = [self.format, f"{len(sizes)} tensors of {sum(sizes):,} numbers"]
        facts += [self.model["name"]] if self.model else []
        facts += [self.task_file["function"]] if self.task_file else []
        facts += [f"epoch {self.epoch}"] if self.epoch else []
        return f"<Checkpoint {self.path}: {', '.join(facts)}>"

    @property
    def name(self) -> str:
        """The folder of a `ckpt.pt`, else folder and file: `gam`, `gam/epoch-0010`."""
        path = Path(self.path).absolute()
        return path.parent.name if path.stem == "ckpt" else f"{path.parent.name}/{stem(path)}"

    def load_into(
        self,
        model: nn.Module,
        *,
        rename: Mapping[str, str] | None = None,
        ignore: Sequence[str] = (),
        allow_uninitialised: bool = False,
    ) -> list[str]:
        """Put the stored weights into a model, all of them, or raise and change nothing.

        Wrappers that other programs put before the names (`module.`, `_orig_mod.`, `model.`, ...)
        are taken off where the names then fit, and torch's own load hooks run, as
        `model.load_state_dict` runs them. The model takes the precision of the file. An adapter of
        PEFT goes into a model of PEFT, or is added to the weights that the model has: once a call,
        so that a second call adds it again.

        Args:
            model: changed in place.
            rename: beginnings of names in the file -> what they become, e.g. `{"net.": ""}`.
            ignore: shell patterns of names that may be in only one of file and model.
            allow_uninitialised: whether weights of the model that are ignored may stay as it was
                built, at random; else that is refused.

        Returns:
            What was done to make the names fit, a line each, and which weights stayed.

        Raises:
            CheckpointError: they do not fit, as a table with what would help; a parameter is NaN or
                infinite; they are codes of quantised weights, or complex or whole numbers for real
                ones.
        """
        wishes = Wishes(rename or {}, ignore, allow_uninitialised)
        stored, notes = self._stored(), list[str]()
        if self.adapter:
            stored, notes = with_base(model, stored, self.adapter)
        return [*place(model, stored, wishes, where=f"{self.path} and the model"), *notes]

    def build_model(self) -> nn.Module:
        """Return the model with the stored weights, in eval mode; random states are untouched.

        Raises:
            CheckpointError: no or an unknown model, or tensors that do not fit it, each named.
        """
        return self._built(finite=False)

    def build_data(self, root: str | None = None) -> Dataset:
        """Return the data on which the model was trained.

        Args:
            root: folder of the data, where they lie in another one now.

        Raises:
            CheckpointError: no or unknown data, or the rebuilt tensors differ from those trained
                on.
            MissingDependencyError: a package that holds the data is not installed.
        """
        recipe = self._recipe("data")
        with self._rebuilding():
            dataset = build_data(recipe, root=root)
        digest = dataset.sha256()
        if digest != recipe["sha256"]:
            moved = {} if root is None else {"root": root}
            here = call_text(recipe["name"], {**recipe["kwargs"], **moved})
            raise CheckpointError(
                f"{self.path} was trained on other data than {here} gives here "
                f"(sha256 {recipe['sha256'][:12]}, here {digest[:12]}); "
                "install the package versions with which it was trained"
            )
        return dataset

    def build_loss(self) -> Loss:
        """Return the loss that was minimised.

        Raises:
            CheckpointError: no or an unknown loss.
        """
        recipe = self._recipe("loss")
        with self._rebuilding():
            return build_loss(recipe)

    def task(self, *, data_root: str | None = None) -> Task:
        """Return model, loss and data as the file names them, ready to be analyzed.

        Args:
            data_root: folder of the data, where they lie in another one now.

        Raises:
            CheckpointError: as the builders; or a weight is NaN or infinite.
        """
        return self.task_with_data(None, data_root=data_root)[0]

    def task_with_data(
        self, dataset: Dataset | None, *, data_root: str | None = None
    ) -> tuple[Task, Dataset]:
        """Return the task and its data, which are built unless they are given.

        Args:
            dataset: as the file names it, built for another checkpoint of the same data.
            data_root: as of `task`.

        Raises:
            CheckpointError: as `task`.
        """
        model = self._built(finite=True)  # first: data may take long
        if dataset is None:
            dataset = self.build_data(data_root)
        task = Task(
            model=model,
            loss=self.build_loss(),
            data=dataset.train,
            test_data=dataset.test,
            name=self.name,
            origin=self.describe(),
        )
        return task, dataset

    def non_finite(self) -> dict[str, int]:
        """Return how many values are NaN or infinite, for the tensors that have any."""
        counts = {
            key: int((~in_numbers(value).isfinite()).sum())
            for key, value in self.state_dict.items()
        }
        return {key: count for key, count in counts.items() if count}

    def describe(self) -> dict[str, Any]:
        """Return what a report says about its checkpoint, ready for JSON."""
        if not self.model:
            return self.describe_file()
        return {
            **self._identity(),
            "flatkit": self.version,
            "epoch": self.epoch,
            "model": plain(self.model),
            "data": plain(self.data),
            "loss": plain(self.loss),
            **self._of_training(),
        }

    def describe_file(self) -> dict[str, Any]:
        """Return what a report says of a file that gives the weights alone, ready for JSON."""
        about = {**self._identity(), "entry": self.entry, "other_entries": list(self.others)}
        if self.task_file:
            own = {"flatkit": self.version, "epoch": self.epoch, "task_file": self.task_file}
            return {**about, **plain(own), **self._of_training()}
        epoch = self.beside.get("epoch")  # as the program that wrote it counts
        return about | ({"epoch": epoch} if type(epoch) in (int, float) else {})

    def _of_training(self) -> dict[str, Any]:
        data_and_model = ("data", "data_kwargs", "model", "model_kwargs")
        training = {
            key: value
            for key, value in self.config.items()
            if value is not None and key not in data_and_model
        }
        return {"optimizer": self.config.get("optimizer"), "training": plain(training)}

    def _identity(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "name": self.name,
            "sha256": self.sha256,
            "format": self.format,
        }

    def _stored(self) -> Stored:
        return Stored(self.path, self.state_dict, self.unread, self.versions, self.extra)

    def _built(self, *, finite: bool) -> nn.Module:
        recipe = self._recipe("model")
        with self._rebuilding():
            model = build_model(recipe)
        where = f"{self.path} and {call_text(**recipe)}"
        place(model, self._stored(), Wishes(finite=finite), where=where)
        return model

    def _recipe(self, part: Literal["model", "data", "loss"]) -> Recipe:
        """Return what the file says of model, data or loss."""
        recipe: Recipe = getattr(self, part)
        if self.task_file:
            function = self.task_file["function"]
            raise CheckpointError(
                f"{self.path} was trained on the task {function}, which is code and is never run "
                f"unless you name it: give `task` {function}"
            )
        if not recipe:
            raise CheckpointError(
                f"{self.path} ({self.format}) holds weights but does not say which model, loss "
                "and data they belong to: name them with `task` FILE.py:build, or `model`, `data` "
                "and `loss` (flatkit analyze, compare, verify, landscape); from Python, "
                "load_into(model)"
            )
        return recipe

    @contextmanager
    def _rebuilding(self) -> Generator[None, None, None]:
        try:
            yield
        # A TypeError is the file's fault here: its arguments may be of any type.
        except (InvalidArgumentError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} cannot be rebuilt by flatkit {__version__}: {error}"
            ) from error
