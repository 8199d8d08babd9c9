"""The runs of a study: which there are, and how one is trained and measured, or taken as it lies.

A run leaves in its folder what `flatkit train` does, `report.json` of its last checkpoint, and
`along.json` of those that were kept on the way. What lies there is never made again, and a training
that was killed goes on after an epoch of its last second, with the same bits. Of a run that is done
the files of JSON are enough, which are small; where checkpoints of one that is not done are gone,
it is trained again from the start.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from flatkit.checks import check_count
from flatkit.errors import FlatkitError, NonFiniteError, ResultError
from flatkit.files.atomic import write_text_atomically
from flatkit.studies.settings import Arm, Study
from flatkit.training.folder import RunFolder
from flatkit.training.history import read_history

_FIRST_TUNING_SEED = 1_000_000
"""Seeds of tuning are not those of a study, of which nobody asks for so many."""

_SAVE_SECONDS = 1.0
"""Of a training, which a kill may lose: on digits an epoch takes 5 ms, and its files 15."""


@dataclass(frozen=True)
class Run:
    """One training and its measurements.

    Attributes:
        condition: of the study.
        arm: of the study.
        seed: of the training.
        variant: the values that are tried, or were chosen.
        folder: relative to that of the study.
        settings: of the training.
        measured: whether it is measured; runs that only choose values are not.
    """

    condition: str
    arm: str
    seed: int
    variant: Mapping[str, Any]
    folder: str
    settings: Mapping[str, Any]
    measured: bool = True


def study_runs(study: Study, chosen: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Run]:
    """Return the runs of a study, seed by seed, so that a stop leaves whole comparisons.

    Args:
        study: what is asked.
        chosen: (condition, arm) -> the values that tuning chose.
    """
    return [
        Run(
            condition,
            arm.name,
            seed,
            (values := chosen.get((condition, arm.name), {})),
            _folder(condition, arm.name, f"seed-{seed}"),
            study.training(condition, arm, seed, values),
        )
        # Seeds outermost: a study that is stopped has each arm as often.
        for seed, condition, arm in product(study.seeds, study.conditions, study.arms)
    ]


def tuning_runs(study: Study) -> list[Run]:
    """Return the runs by which values are chosen."""
    return [
        Run(
            condition,
            arm.name,
            seed,
            variant,
            _folder(condition, arm.name, "tuning", _slug(variant), f"seed-{seed}"),
            study.training(condition, arm, seed, variant),
            measured=False,
        )
        for condition, arm in product(study.conditions, study.arms)
        if arm.tune
        for variant in arm.variants()
        for seed in range(_FIRST_TUNING_SEED, _FIRST_TUNING_SEED + study.tuning_seeds)
    ]


def choose(
    study: Study, outcomes: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return for each tuned arm the values of the best mean accuracy on the validation split.

    Where outputs are no classes it is the lowest mean loss. A variant of which a run diverged is
    not chosen, unless all did; of equal ones the first is.

    Args:
        study: what is asked.
        outcomes: folder of a run -> what `run_one` returned.
    """
    scores: dict[tuple[str, str], list[tuple[float, dict[str, Any]]]] = {}
    for condition, arm in product(study.conditions, study.arms):
        for variant in arm.variants() if arm.tune else ():
            found = [outcomes[run.folder] for run in _of(study, condition, arm, variant)]
            values = [_score(one) for one in found]
            score = sum(values) / len(values)
            scores.setdefault((condition, arm.name), []).append((score, variant))
    return {key: max(tried, key=lambda one: one[0])[1] for key, tried in scores.items()}


def _score(outcome: Mapping[str, Any]) -> float:
    """Return how good a run is on the validation split; a run that diverged is the worst."""
    accuracy, loss = outcome["validation_accuracy"], outcome.get("validation_loss")
    if accuracy is not None:
        return accuracy
    return float("-inf") if loss is None else -loss


def _of(study: Study, condition: str, arm: Arm, variant: Mapping[str, Any]) -> Iterator[Run]:
    for run in tuning_runs(study):
        if (run.condition, run.arm, run.variant) == (condition, arm.name, variant):
            yield run


def _folder(*parts: str) -> str:
    return Path(*(part for part in parts if part)).as_posix()


def _slug(variant: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in variant.items())


def run_one(
    folder: str,
    settings: Mapping[str, Any],
    analysis: Mapping[str, Any] | None,
    along: Sequence[str],
    task: str,
    trainer: str,
) -> dict[str, Any]:
    """Train and measure one run, or what is left of it; for a process of its own.

    Args:
        folder: of the run.
        settings: of the training.
        analysis: settings of the analysis; None for a run that only chooses values.
        along: measures of the checkpoints on the way.
        task: as of `Study.task_of`.
        trainer: as of `Study`.

    Returns:
        Its last accuracies and losses, `gradients` and `epochs`; `diverged`: in words, or None.
    """
    place = Path(folder)
    done = place / "outcome.json"
    # Another process, or an earlier call, has made it.
    if done.is_file():
        return finished(place)
    try:
        outcome = _trained(place, settings, trainer)
        if analysis is not None:
            _measured(place, outcome.pop("checkpoint"), analysis, along, task)
        elif trainer and outcome["validation_accuracy"] is None:
            raise FlatkitError(
                f"{trainer} must return a mapping with 'validation_accuracy' beside 'checkpoint', "
                "as values are tuned by it"
            )
    # An outcome like another: a rate that is too large for an arm must not end the study.
    except NonFiniteError as error:  # of the training, or of what it left
        outcome = {"diverged": str(error), "validation_accuracy": None}
    write_text_atomically(done, json.dumps(outcome, indent=1) + "\n")
    return outcome


def finished(place: Path) -> dict[str, Any]:
    """Return what came out of a run that is done.

    Args:
        place: its folder.

    Raises:
        ResultError: what lies there is damaged; the message says how the run is made again.
    """
    path = place / "outcome.json"
    try:
        found: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        found, reason = None, f" ({error})"
    else:
        reason = ""
    if not isinstance(found, dict) or not {"diverged", "validation_accuracy"} <= set(found):
        raise ResultError(
            f"{path} is damaged{reason}; remove the folder {place}, and the same command makes "
            "this run again"
        )
    return found


def _trained(place: Path, settings: Mapping[str, Any], trainer: str) -> dict[str, Any]:
    from flatkit.training.config import TrainingConfig
    from flatkit.training.run import train

    if trainer:
        return _by_the_user(place, settings, trainer)
    config = TrainingConfig(**settings)
    # Of a run whose kept checkpoints are gone the curves would lack their beginning.
    resume = _is_whole(place, config.save_every)
    train(config, place, resume=resume, overwrite=not resume, save_seconds=_SAVE_SECONDS)
    rows = read_history(place / "history.json")
    last = rows[-1].to_dict()
    kept = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "gradients")
    return {
        "checkpoint": str(place / "ckpt.pt"),
        "diverged": None,
        "epochs": len(rows),
        "validation_accuracy": last.get("validation_accuracy"),
        "validation_loss": last.get("validation_loss"),
        **{name: last[name] for name in kept},
    }


def _is_whole(place: Path, every: int) -> bool:
    """Whether a training can go on: its checkpoint is there, and those that were to be kept."""
    if not (place / "ckpt.pt").is_file():
        return False
    path = place / "history.json"
    epochs = len(read_history(path)) if path.is_file() else 0
    kept = range(every, epochs + 1, every) if every else ()
    return all(RunFolder(place).kept(epoch).is_file() for epoch in kept)


def _by_the_user(place: Path, settings: Mapping[str, Any], trainer: str) -> dict[str, Any]:
    """Let the user's function train; it leaves its checkpoint in the folder, or says where."""
    from flatkit.checkpoints.task_file import load_function
    from flatkit.objective.users_code import users_code

    place.mkdir(parents=True, exist_ok=True)
    given = dict(settings)
    seed = check_count("seed", given.pop("seed"), minimum=0)
    function = load_function(trainer, what="trainer")
    with users_code(f"{trainer} in {place}"):
        answer = function(place, seed, given)
    told = dict(answer) if isinstance(answer, Mapping) else {"checkpoint": answer}
    checkpoint = Path(str(told.pop("checkpoint", "")))
    if not checkpoint.is_file():
        raise FlatkitError(
            f"{trainer} must return the path of the checkpoint that it wrote, or a mapping with "
            f"'checkpoint'; got {answer!r}"
        )
    scored = told.get("validation_accuracy")
    if isinstance(scored, float) and not math.isfinite(scored):
        raise NonFiniteError(f"{trainer} says that the validation accuracy is {scored}")
    told = {name: value for name, value in told.items() if _is_number(value)}
    return {"diverged": None, "validation_accuracy": None, "checkpoint": str(checkpoint), **told}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _measured(
    place: Path, checkpoint: str, analysis: Mapping[str, Any], along: Sequence[str], task: str
) -> None:
    """Measure the last checkpoint, and those on the way, as far as it was not done."""
    from flatkit.comparison.compare import compare

    more = {"task": task} if task else {}
    report = place / "report.json"
    if not report.is_file():
        compared = compare({"run": checkpoint}, jobs=1, progress=False, **more, **analysis)
        compared.entries[0].report.save(report)
    kept = sorted(place.glob("epoch-[0-9]*.pt"))
    curves = place / "along.json"
    # Each file by itself, so that a kill between the two costs one of them.
    if along and kept and not curves.is_file():
        measures = ["loss", *(name for name in along if name != "loss")]
        fewer: dict[str, Any] = {**analysis, **more, "measures": measures}
        journal = place / "along.journal"
        files = {file.stem: file for file in kept}
        found = compare(files, jobs=1, progress=False, journal=journal, **fewer)
        found.save(curves)
