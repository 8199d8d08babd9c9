"""Loss, accuracy and gradient norm at the checkpoint."""

import math

from flatkit.errors import NonFiniteError
from flatkit.measures.session import Session
from flatkit.results import Result


def evaluations(session: Session) -> list[Result]:
    """Return loss and accuracy on the training data and, if there are any, the test data."""
    results = []
    for split, objective in (("train", session.objective), ("test", session.test_objective)):
        if objective is None:
            continue
        with session.meter() as cost:
            evaluation = objective.evaluate()
            spent = cost()
        if not math.isfinite(evaluation.loss):
            raise NonFiniteError(
                f"the loss on the {split} data is {evaluation.loss}; the training diverged, "
                "analyze an earlier checkpoint"
            )
        settings = {"split": split, "samples": objective.num_samples}
        loss = {**settings, "loss": objective.describe()["loss"]}
        results.append(Result("loss", evaluation.loss, 0.0, settings=loss, cost=spent))
        if evaluation.accuracy is not None:
            results.append(Result("accuracy", evaluation.accuracy, 0.0, settings=settings))
    return results


def gradient_norm(session: Session) -> list[Result]:
    """Return ‖∇L‖ on the training data."""
    with session.meter() as cost:
        value = float(session.gradient.double().norm())
        return [Result("gradient_norm", value, 0.0, settings={"split": "train"}, cost=cost())]
