"""What is said of one quantity of several runs: a value a group, its errors apart, and pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from flatkit.measures.reading import Better, Role

PairedBy: TypeAlias = Literal["seed", "samples", "none"]


@dataclass(frozen=True)
class GroupValue:
    """A number of a group of runs, with its three errors apart.

    Attributes:
        group: its name; of a run, where no group has several.
        runs: how many.
        mean: over the trainings, of which runs of one seed are one.
        solver: of the mean: residuals, errors over probes (shared by the runs, so that they need
            not cancel), or what the searches leave open; None if unknown.
        seeds: the standard error of the mean over the runs; None for one run.
        sampling: the standard error over samples of the data; None if unknown.
    """

    group: str
    runs: int
    mean: float
    solver: float | None
    seeds: float | None
    sampling: float | None


@dataclass(frozen=True)
class Pair:
    """The difference of two groups, or runs.

    Attributes:
        first: a group.
        second: another.
        difference: of the means, first - second; over the common seeds where these are paired.
        low: of its 95 % interval; None where nothing is known of the error. It is that of the
            population where the error of the data sample is known: then free of what few samples
            add to a number in the mean (`Reading.sampling_bias`).
        high: of its interval.
        p: of the hypothesis that there is none.
        p_holm: the same, corrected for all pairs of this quantity.
        runs: how many pairs, or the fewer of two groups that are not paired.
        paired_by: `seed`, `samples` (two runs, block by block of the samples) or `none`.
        differs: whether they differ beyond all errors that are known, at 5 % over the family.
    """

    first: str
    second: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    runs: int
    paired_by: PairedBy
    differs: bool


@dataclass(frozen=True)
class Quantity:
    """One quantity that all runs have.

    Attributes:
        key: for programs.
        title: for readers.
        better: which values are wanted; of a flatness, which are flatter.
        role: `fit` or `flatness`.
        rows: a value a group, in the order of the comparison.
        pairs: every two groups.
        flattest: the group that is flatter than every other beyond all errors that are known.
        why: it, or none, is called so.
        unsampled: why the error of the data sample is not known; empty where it is.
    """

    key: str
    title: str
    better: Better
    role: Role
    rows: Sequence[GroupValue]
    pairs: Sequence[Pair]
    flattest: str | None
    why: str
    unsampled: str = ""
