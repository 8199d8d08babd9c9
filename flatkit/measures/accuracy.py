"""Fraction of samples that a classifier gets right, on the training and test data."""

from typing import TYPE_CHECKING

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, number
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> list[Result]:
    """Return the accuracy of each split; none of a model that is no classifier.

    The pass that finds the loss finds it too, and the cost stands there.
    """
    from flatkit.measures.precision import exactness

    return [
        Result(
            "accuracy",
            evaluation.accuracy,
            *exactness(session, "accuracy", split),
            settings={"split": split, "samples": session.splits[split].num_samples},
        )
        for split, (evaluation, _) in session.evaluations.items()
        if evaluation.accuracy is not None
    ]


def read(result: Result) -> list[Reading]:
    """Return the accuracy in percent, the training data first."""
    split = result.settings.get("split", "train")
    return [
        number(
            result,
            f"{split}_accuracy",
            f"{split} accuracy (%)",
            scale=100.0,
            role="fit",
            better="higher",
            drawn=split == "test",
            place=int(split == "test"),
        )
    ]


MEASURE = Measure(
    "accuracy",
    "fraction of samples classified correctly, on both",
    run,
    read,
    # The loss is measured too, and its pass counts the right ones.
    passes=lambda session: 0.0,
    first=lambda session: len(session.splits) / 3,  # where the loss is not measured
    absent="the model is no classifier",
    in_bfloat16=True,
    influence=lambda samples, result: samples.evaluation(result),
    about="The share of samples whose class is the largest output. It says how well the network "
    "does; the gap between training and test data is what flatness is meant to explain.",
)
