"""Mean loss on the training and test data."""

from typing import TYPE_CHECKING

from flatkit.measures.base import Measure
from flatkit.measures.reading import Reading, number
from flatkit.results.result import Result

if TYPE_CHECKING:
    from flatkit.measures.session import Session


def run(session: "Session") -> list[Result]:
    """Return the loss of each split."""
    from flatkit.measures.precision import exactness

    return [
        Result(
            "loss",
            evaluation.loss,
            *exactness(session, "loss", split),
            settings={
                "split": split,
                "samples": session.splits[split].num_samples,
                "loss": session.splits[split].describe()["loss"],
            },
            cost=cost,
        )
        for split, (evaluation, cost) in session.evaluations.items()
    ]


def read(result: Result) -> list[Reading]:
    """Return the loss under the name of its split, the training data first."""
    split = result.settings.get("split", "train")
    place = int(split == "test")
    return [
        number(result, f"{split}_loss", f"{split} loss", role="fit", better="lower", place=place)
    ]


MEASURE = Measure(
    "loss",
    "mean loss on the training and test data",
    run,
    read,
    # A value costs about a third of a gradient, which goes back through the network as well.
    passes=lambda session: len(session.splits) / 3,
    in_bfloat16=True,
    influence=lambda samples, result: samples.evaluation(result),
    about="The mean loss L of the function that all other numbers describe, and on the test data. "
    "Runs whose losses differ much differ in curvature for that reason alone: compare "
    "flatness at equal losses.",
)
