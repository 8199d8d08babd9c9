"""What a measurement cost, in what was computed and in seconds."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cost:
    """What a measurement cost.

    Attributes:
        gradients: gradients of the loss over all the samples.
        matvecs: products with the Hessian over all the samples.
        seconds: wall-clock time.
        losses: evaluations of the loss alone over all the samples.
    """

    gradients: int = 0
    matvecs: int = 0
    seconds: float = 0.0
    losses: int = 0

    def counts(self) -> dict[str, int]:
        """Return what was computed, by name; `Objective.count` takes it.

        >>> Cost(gradients=1, seconds=0.5).counts()
        {'losses': 0, 'gradients': 1, 'matvecs': 0}
        """
        return {"losses": self.losses, "gradients": self.gradients, "matvecs": self.matvecs}

    def __add__(self, other: "Cost") -> "Cost":
        """Return what both are together."""
        more = asdict(other)
        return Cost(**{name: value + more[name] for name, value in asdict(self).items()})

    def __sub__(self, earlier: "Cost") -> "Cost":
        """Return what was added after an earlier reading."""
        before = asdict(earlier)
        return Cost(**{name: value - before[name] for name, value in asdict(self).items()})
