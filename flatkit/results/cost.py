"""What a measurement cost, in what was computed and in seconds."""

from dataclasses import dataclass


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

    # Field by field: `asdict` copies deeply, and an analysis subtracts costs ten times a step.
    def __add__(self, other: "Cost") -> "Cost":
        """Return what both are together."""
        return Cost(
            self.gradients + other.gradients,
            self.matvecs + other.matvecs,
            self.seconds + other.seconds,
            self.losses + other.losses,
        )

    def __sub__(self, earlier: "Cost") -> "Cost":
        """Return what was added after an earlier reading."""
        return Cost(
            self.gradients - earlier.gradients,
            self.matvecs - earlier.matvecs,
            self.seconds - earlier.seconds,
            self.losses - earlier.losses,
        )
