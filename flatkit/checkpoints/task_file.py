"""A checkpoint and what it lacks become a task: from a task file, from registries, or from itself.

A task file is Python that the user wrote and named, the only place where code from outside runs:

    # my_task.py
    def build():
        return flatkit.Task(MyModel(), "cross_entropy", MyData("data"))
"""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.loading import load
from flatkit.checkpoints.parts import Parts, file_of
from flatkit.checkpoints.recipe import (
    build_data,
    build_loss,
    build_model,
    data_recipe,
    model_recipe,
)
from flatkit.checkpoints.sharded import load_parts
from flatkit.checkpoints.taken_task import taken
from flatkit.checkpoints.text_task import text_task
from flatkit.errors import InvalidArgumentError, TaskError
from flatkit.objective.losses import LossFunction
from flatkit.objective.model.sharded import kind_of
from flatkit.objective.task import Task


def assemble(checkpoint: Checkpoint, parts: Parts) -> Task:
    """Return the task of a checkpoint: its weights in the model that was named.

    Raises:
        CheckpointError: the weights do not fit, are not finite, or nothing names the model.
        InvalidArgumentError: a name or argument is wrong.
        TaskError: the task file fails.
    """
    if not parts.complete:
        refuse_without_model(checkpoint, parts)
        return checkpoint.task(data_root=parts.data_root)
    return fitted(checkpoint, *build_task(parts, checkpoint.path), parts)


def fitted(checkpoint: Checkpoint, task: Task, origin: Mapping[str, Any], parts: Parts) -> Task:
    """Return a task whose model has taken the weights of a checkpoint.

    Where flatkit trained it on fewer samples or wrong labels of the same data, these are measured.

    Args:
        checkpoint: of that model.
        task: its model is changed.
        origin: what a report says of where the task comes from.
        parts: `rename`, `ignore` and `allow_uninitialised` of them are used.

    Raises:
        CheckpointError: the weights do not fit, or are not finite.
    """
    notes = _put(checkpoint, task.model, parts)
    if changes := checkpoint.task_file.get("changes"):
        whole = taken(task)
        if whole.sha256 == checkpoint.task_file["data_sha256"]:
            task = whole.changed(changes).task
        else:
            notes = [*notes, f"trained on other data, of which {', '.join(changes)} are left out"]
    return replace(
        task,
        name=task.name or checkpoint.name,
        origin={**checkpoint.describe_file(), **origin, "fitted": notes},
    )


def _put(checkpoint: Checkpoint, model: nn.Module, parts: Parts) -> list[str]:
    """Put the weights into a model; return what was done to make them fit."""
    wishes: dict[str, Any] = {
        "rename": parts.rename,
        "ignore": parts.ignore,
        "allow_uninitialised": parts.allow_uninitialised,
    }
    with torch.no_grad():
        if kind_of(model) is None:
            return checkpoint.load_into(model, **wishes)
        if given := [name for name, wish in wishes.items() if wish]:
            raise InvalidArgumentError(
                f"{given[0]} must be left out for a model in parts on several ranks, which takes "
                "names as they are in the file"
            )
        load_parts(checkpoint.path, model, entry=checkpoint.entry or None)
    return []


def load_task(spec: str) -> Task:
    """Run a task file and return what its function builds.

    Args:
        spec: `FILE.py:FUNCTION`; the folder of the file can be imported from.

    Raises:
        InvalidArgumentError: not of this form, or there is no such file.
        TaskError: the file or the function fails, or it returns something else.
    """
    build = load_function(spec, what="task")
    path, _, function = spec.rpartition(":")
    # Said before it runs: building may take minutes.
    needed = [
        parameter.name
        for parameter in signature(build).parameters.values()
        if parameter.default is Parameter.empty
        and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]
    if needed:
        raise TaskError(f"{function} in {path} must take no arguments, not {', '.join(needed)}")
    try:
        task = build()
    except (Exception, SystemExit) as error:
        raise _failure(Path(path), error) from error
    if not isinstance(task, Task):
        raise TaskError(
            f"{function} in {path} must return a flatkit.Task(model, loss, data), "
            f"got {type(task).__name__}"
        )
    return task


def load_function(spec: str, *, what: str = "function") -> Callable[..., Any]:
    """Run a file of the user and return a function of it.

    Args:
        spec: `FILE.py:FUNCTION`; the folder of the file can be imported from.
        what: it is for, in messages.

    Raises:
        InvalidArgumentError: not of this form, or there is no such file.
        TaskError: the file fails, or has no such function.
    """
    path, function = file_of(spec, what), spec.rpartition(":")[2]
    module = _run(path)
    found = getattr(module, function, None)
    if not callable(found):
        home = module.__name__
        # Its own alone: what it imports is no candidate.
        own = [key for key, item in vars(module).items() if _home(item) == home]
        raise TaskError(f"{path} has no function {function}; it has {', '.join(own) or 'none'}")
    return found


def as_task(
    subject: nn.Module | Task | Checkpoint | str | Path,
    loss: LossFunction | str | None = None,
    data: Any = None,
    test_data: Any = None,
) -> Task:
    """Return the task that a caller means.

    Args:
        subject: a model, together with loss and data; or a task, a checkpoint or its path alone.
        loss: the loss of a model, by name or as a function.
        data: the training data of a model.
        test_data: the test data of a model, if it has any.

    Raises:
        InvalidArgumentError: a model without loss and data, or something else with them.
        CheckpointError: the file cannot be read, or does not name its model.

    >>> import torch
    >>> as_task(nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1))).loss
    MeanSquared()
    """
    if isinstance(subject, nn.Module):
        if loss is None or data is None:
            raise InvalidArgumentError("a model needs a loss and data: analyze(model, loss, data)")
        return Task(subject, loss, data, test_data)
    if loss is not None or data is not None or test_data is not None:
        raise InvalidArgumentError(
            f"loss and data go with a model, not with a {type(subject).__name__}, which has its "
            "own; put the weights of a file into a model with flatkit.load(file).load_into(model)"
        )
    if isinstance(subject, Task):
        return subject
    checkpoint: Any = load(subject) if isinstance(subject, str | Path) else subject
    if not isinstance(checkpoint, Checkpoint):
        raise InvalidArgumentError(
            "what is analyzed must be a model with loss and data, a Task, a Checkpoint or the path "
            f"of one, got a {type(subject).__name__}"
        )
    return checkpoint.task()


def refuse_without_model(checkpoint: Checkpoint, parts: Parts) -> None:
    """Refuse parts that are of no use without a model.

    Raises:
        InvalidArgumentError: there are some.
    """
    if parts.data or parts.rename or parts.ignore or parts.loss or parts.allow_uninitialised:
        raise InvalidArgumentError(
            f"to look at {checkpoint.path} with other data, another loss or other names, name the "
            "model too: `model` or `task`"
        )


def _home(item: Any) -> str:
    return getattr(item, "__module__", "")


def build_task(parts: Parts, path: str) -> tuple[Task, dict[str, Any]]:
    """Return the task that parts name, without the weights, and what it is made of.

    Args:
        parts: which are complete.
        path: of the checkpoint, whose folder says what model reads `texts`.

    Raises:
        InvalidArgumentError: a name or argument is wrong.
        TaskError: the task file fails.
        FlatkitError: as `text_task`, where there are texts.
    """
    if parts.task is not None:
        return load_task(parts.task), {"task": parts.task}
    if parts.texts:
        return text_task(Path(path), parts)
    dataset = build_data({"name": parts.data, "kwargs": parts.data_args}, root=parts.data_root)
    loss = build_loss({"name": parts.loss or "cross_entropy", "kwargs": {}})
    model = model_recipe(str(parts.model), parts.model_args, dataset)
    task = Task(build_model(model), loss, dataset.train, dataset.test)
    return task, {"model": model, "data": data_recipe(dataset), "loss": loss.spec()}


def _run(path: Path) -> ModuleType:
    """Import a file under a name of its own."""
    # A name that no module of the user has: `import my_task` elsewhere stays possible.
    spec = importlib.util.spec_from_file_location(f"flatkit_task_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # a .py file has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # before it runs: dataclasses and pickle look it up there
    folder = str(path.parent.resolve())
    # The file may import what lies beside it, now or when its function runs.
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _failure(path, error) from error
    return module


def _failure(path: Path, error: BaseException) -> TaskError:
    """Return an error that names the last line of the file that was running."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    where = f", line {own[-1].lineno} in {own[-1].name}" if own else ""
    where = f", line {line}" if line else where
    return TaskError(f"{path}{where}: {type(error).__name__}: {error}")
