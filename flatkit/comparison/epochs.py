"""The checkpoints of a training: which files of a folder they are, and of which epochs."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flatkit.checkpoints.checkpoint import Checkpoint
from flatkit.checkpoints.loading import load
from flatkit.comparison.naming import short_names
from flatkit.errors import InvalidArgumentError

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".npz")
# The last number: `resnet18-cifar10-epoch-20` is of epoch 20.
_NUMBER = re.compile(r"(\d+)(?!.*\d)")
# The average of a run of flatkit, of the same epoch as `ckpt.pt` beside it; and what the trainer of
# Hugging Face puts beside weights.
_NOT_OF_EPOCHS = (
    "ema.pt",
    *("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt"),
)
_STEPS = re.compile(r"(step|iter|iteration|batch|update|checkpoint|ckpt)s?[-_=. ]*$", re.IGNORECASE)
"""What stands before a number that counts something finer than epochs."""
_COUNTS = ("global_step", "step", "iteration", "iter")


@dataclass(frozen=True)
class Stop:
    """A checkpoint on the way of a training.

    Attributes:
        path: of the file or folder.
        run: what the training is called.
        epoch: of the training, or what its program counts in the name of the file; None where
            neither the name nor the file says.
        inside: the epoch that the file itself holds, where its name has another number, and nothing
            says that this one counts steps.
        named: whether the name has a number.
        counts: what a file of another program counts itself, by name: epochs, steps.
    """

    path: str
    run: str
    epoch: float
    inside: float | None = None
    named: bool = True
    counts: Mapping[str, float] = field(default_factory=dict[str, float])


def stops_of(sources: Sequence[str | Path], *, entry: str | None = None) -> list[Stop]:
    """Return the checkpoints of folders, patterns and files, those of a run by epoch.

    In a folder of flatkit those are `epoch-*.pt`, and `ckpt.pt` where it is of a later epoch; in
    another one all files of weights, and folders such as `checkpoint-500`. A file that flatkit
    wrote knows its epoch. Of others it is the last number in the name, or what stands in the file:
    where names count steps, `last.ckpt` beside them is placed by its step, and is left out where it
    is one of them again. In a folder with two such names, a file that says nothing is left out too.

    Args:
        sources: folders, patterns or files.
        entry: the part of the files that holds the weights.

    Raises:
        InvalidArgumentError: nothing was found, fewer than two epochs of a run, two files of one
            epoch, or files that all hold one epoch, so that their names count seeds, say.
        CheckpointError: a file cannot be read, or nothing says of which epoch it is.
    """
    stops: dict[str, Stop] = {}
    for source in sources:
        read = [_stop(path, entry) for path in _files(Path(source))]
        for stop in _in_one_unit(read, in_folder=Path(source).is_dir()):
            stops.setdefault(str(Path(stop.path).resolve()), stop)
    stops = _runs_apart(stops)
    found = sorted(stops.values(), key=lambda stop: (_order(stop, stops), stop.epoch, stop.path))
    return _checked(found)


def _runs_apart(stops: Mapping[str, Stop]) -> dict[str, Stop]:
    """Return the checkpoints, those of folders of one name with the parts in which these differ."""
    folders = list(dict.fromkeys(str(Path(file).parent) for file in stops))
    names = [Path(folder).name for folder in folders]
    if len(set(names)) == len(names):
        return dict(stops)
    told = dict(zip(folders, short_names(folders), strict=True))
    return {file: replace(stop, run=told[str(Path(file).parent)]) for file, stop in stops.items()}


def _order(stop: Stop, stops: dict[str, Stop]) -> int:
    return list(dict.fromkeys(other.run for other in stops.values())).index(stop.run)


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        found = [path for path in sorted(source.iterdir()) if _holds_weights(path)]
        kept = [path for path in found if path.name.startswith("epoch-")]
        last = source / "ckpt.pt"
        if kept or last.is_file():  # of flatkit: the last one again, if no kept one is of its epoch
            found = [*kept, *([last] if last.is_file() else [])]
    elif source.exists():
        found = [source]
    else:
        anchor = Path(source.anchor or ".")
        pattern = source.relative_to(source.anchor) if source.anchor else source
        found = sorted(anchor.glob(pattern.as_posix()))
    if not found:
        raise InvalidArgumentError(
            f"no checkpoints in {source}: name a folder with epoch-*.pt (flatkit train "
            "--save-every N leaves them), or a pattern in quotes"
        )
    return found


def _holds_weights(path: Path) -> bool:
    if path.is_dir():
        return bool(_NUMBER.search(path.name)) and any(
            p.suffix in _SUFFIXES for p in path.iterdir()
        )
    return path.suffix in _SUFFIXES and path.name not in _NOT_OF_EPOCHS


def _stop(path: Path, entry: str | None) -> Stop:
    """Return a checkpoint, of epoch NaN where nothing says of which it is."""
    checkpoint = load(path, entry=entry)
    run = path.resolve().parent.name
    if checkpoint.model:
        return Stop(str(path), run, checkpoint.epoch)
    number, beside = _NUMBER.search(path.stem), checkpoint.beside
    counts = {
        name: float(beside[name])
        for name in ("epoch", *_COUNTS)
        if isinstance(beside.get(name), int | float)
    }
    if number is None:
        epoch = counts.get("epoch", math.nan)
        return Stop(str(path), run, epoch, named=False, counts=counts)
    return Stop(str(path), run, float(number[1]), _inside(path, checkpoint), counts=counts)


def _in_one_unit(stops: Sequence[Stop], *, in_folder: bool) -> list[Stop]:
    """Return the checkpoints of a source, those without a number by what the names of others count.

    Raises:
        InvalidArgumentError: nothing says of which epoch one is.
    """
    numbered = [stop for stop in stops if stop.named]
    units = [
        name
        for name in ("epoch", *_COUNTS)
        if all(stop.counts.get(name) == stop.epoch for stop in numbered)
    ]
    known = {stop.epoch for stop in numbered}
    found: list[Stop] = []
    for stop in stops:
        if stop.named:
            found.append(stop)
            continue
        # Lightning names files by steps and keeps epochs inside: never both on one axis.
        here = [stop.counts[name] for name in units if name in stop.counts]
        epoch = stop.epoch if not numbered else here[0] if here else math.nan
        if epoch not in known and not math.isnan(epoch):
            found.append(replace(stop, epoch=epoch))
        elif math.isnan(epoch) and not (in_folder and len(numbered) > 1):
            path = Path(stop.path)
            raise InvalidArgumentError(
                f"nothing says of which epoch {path} is: put its number into the name, e.g. "
                f"epoch-0010{path.suffix}"
            )
    return found


def _inside(path: Path, checkpoint: Checkpoint) -> float | None:
    """Return the epoch in a file whose name may count something else than its training does."""
    epoch, number = checkpoint.beside.get("epoch"), _NUMBER.search(path.stem)
    if number is None or not isinstance(epoch, int | float) or epoch == float(number[1]):
        return None
    steps = _STEPS.search(path.stem[: number.start()])
    return None if steps or any(name in checkpoint.beside for name in _COUNTS) else float(epoch)


def _checked(stops: Sequence[Stop]) -> list[Stop]:
    runs: dict[str, dict[float, Stop]] = {}
    for stop in stops:
        known = runs.setdefault(stop.run, {})
        other = known.get(stop.epoch)
        if other is None or Path(other.path).name == "ckpt.pt":
            known[stop.epoch] = stop
        # Of flatkit's two files of one epoch the kept one is taken, whichever came first.
        elif Path(stop.path).name != "ckpt.pt":
            raise InvalidArgumentError(
                f"{other.path} and {stop.path} are both of epoch {stop.epoch:g} of {stop.run}; a "
                "curve is that of one training: put each into a folder of its own, or name its "
                "files by a pattern of their own"
            )
    for run, known in runs.items():
        first, *others = known.values()
        if not others:
            raise InvalidArgumentError(
                f"a curve needs checkpoints of two epochs, and of {run} there is {first.path} "
                f"alone, of epoch {first.epoch:g}; name the folder or a pattern of all, or "
                "train with `save_every`"
            )
        if first.inside is not None and all(stop.inside == first.inside for stop in others):
            raise InvalidArgumentError(
                f"{first.path} and {others[0].path} are both of epoch {first.inside:g}, as they "
                "say themselves: the numbers in their names count something else, such as seeds; "
                "flatkit compare puts trainings side by side"
            )
    return [stop for known in runs.values() for stop in known.values()]
