"""The numbers of checkpoints of one training as curves over its epochs, and where steps diverge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from flatkit.errors import FlatkitError
from flatkit.results.comparison import Comparison, Entry
from flatkit.results.result import Result
from flatkit.training.config import TrainingConfig
from flatkit.training.schedules import learning_rate

OVERLAP = "eigenvector_overlap"
"""Of the leading eigenvectors with those of the checkpoint before."""


@dataclass(frozen=True)
class Stability:
    """At which curvature the steps of an optimizer diverge along an eigenvector.

    Attributes:
        lr: the learning rate η of the epoch.
        two_over_lr: 2/η, the limit of plain gradient descent (Cohen et al., 2021).
        limit: that of the momentum, Nesterov's or not, and the weight decay as they are, in full
            batches: 2(1 + β)/η - w for heavy balls, where dampening d scales η by 1 - d, and
            2(1 + β)/(η(1 + 2β)) - w for Nesterov's.
        wrapped: the optimizer around these steps, e.g. `sam`, whose own limit is lower; empty for
            none.
    """

    lr: float
    two_over_lr: float
    limit: float
    wrapped: str = ""


def stability(training: Mapping[str, Any], epoch: float) -> Stability | None:
    """Return the limits of an epoch, or None where optimizer or rate are not known.

    Steps of Adam are scaled entry by entry, so that λmax alone says nothing of them.

    >>> stability({"optimizer": "sgd", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.0,
    ...            "schedule": "none", "epochs": 2}, 1)
    Stability(lr=0.1, two_over_lr=20.0, limit=30.0, wrapped='')
    """
    try:
        config = TrainingConfig.from_dict(training)
    # Nothing is guessed: an unknown setting may change the limit.
    except (FlatkitError, TypeError):  # of a later version, or of another program
        return None
    if not training or config.base_optimizer != "sgd":
        return None
    # The checkpoint before the first step, epoch 0, has the limit of the steps that follow.
    lr = learning_rate(config, max(1, round(epoch)))
    if lr <= 0:
        return None
    momentum, decay = config.momentum or 0.0, config.weight_decay or 0.0
    # torch leaves the dampening out where there is no momentum.
    taken = 1 - config.optimizer_kwargs.get("dampening", 0.0) if momentum else 1.0
    if taken <= 0:
        return None
    # Along an eigenvector v ← βv + (1 - d)(λ + w)x and x ← x - ηv: a root of the characteristic
    # polynomial reaches -1 at this λ + w.
    limit = 2 * (1 + momentum) / (lr * taken)
    if config.optimizer_kwargs.get("nesterov"):
        limit /= 1 + 2 * momentum
    wrapped = "" if config.optimizer == "sgd" else config.optimizer
    return Stability(lr, 2 / lr, limit - decay, wrapped)


def curves(comparison: Comparison) -> dict[str, list[Entry]]:
    """Return by folder the runs whose epoch is known, two or more, in the order of their epochs.

    >>> from flatkit.results.report import Report
    >>> runs = [Entry(str(n), "g", Report([], {"path": f"gam/{n}.pt"}), epoch=n) for n in (2, 1)]
    >>> [[entry.epoch for entry in run] for run in curves(Comparison(runs)).values()]
    [[1, 2]]
    """
    runs: dict[str, dict[float, Entry]] = {}
    for entry in comparison.entries:
        path = entry.report.checkpoint.get("path")
        if entry.epoch is not None and isinstance(path, str):
            runs.setdefault(PurePath(path).parent.as_posix(), {})[entry.epoch] = entry
    return {
        run: [found[epoch] for epoch in sorted(found)]
        for run, found in runs.items()
        if len(found) > 1
    }


def stability_of(entry: Entry) -> Stability | None:
    """Return the limits of the epoch of a run."""
    training: Any = entry.report.checkpoint.get("training") or {}
    return stability(training, entry.epoch or 0)


def number(entry: Entry, measure: str, **settings: Any) -> tuple[float, float | None] | None:
    """Return a value with its error, the first of several; None where it was not measured.

    >>> from flatkit.results.report import Report
    >>> run = Entry("a", "a", Report([Result("top_eigenvalues", [3.0, 1.0], [0.1, 0.2])]))
    >>> number(run, "top_eigenvalues"), number(run, "trace")
    ((3.0, 0.1), None)
    """
    found = entry.report.find(measure, **settings)
    return None if found is None else pair(found)


def pair(result: Result, place: int = 0) -> tuple[float, float | None]:
    """Return one value of a result, with its error."""
    value, error = result.value, result.error
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[place]
        error = error[place] if isinstance(error, Sequence) else error
    return float(value), None if error is None else float(error)
