"""Settings that all the optimizers here share."""

from dataclasses import dataclass
from typing import TypedDict, final, get_args

from flatkit.checks import check_choice, check_count, check_positive
from flatkit.optim.buffers import HasBuffers
from flatkit.optim.data_parallel import Batch


@final
@dataclass(frozen=True)
class Settings:
    """What an optimizer takes beside its own options; `PerturbedOptimizer` says what each does.

    Raises:
        InvalidArgumentError: a setting is not allowed.

    >>> Settings(every=2)
    Settings(model=None, batch='global', adaptive=False, eta=0.01, every=2, max_norm=None,
             foreach=True, eps=1e-12)
    """

    model: HasBuffers | None = None
    batch: Batch = "global"
    adaptive: bool = False
    eta: float = 0.01  # of Kwon et al.'s code
    every: int = 1
    max_norm: float | None = None
    foreach: bool = True
    eps: float = 1e-12  # as in the widely used code of SAM; far below any norm that matters

    def __post_init__(self) -> None:
        check_choice("batch", self.batch, get_args(Batch))
        check_count("every", self.every)
        check_positive("eta", self.eta)
        check_positive("eps", self.eps)
        if self.max_norm is not None:
            check_positive("max_norm", self.max_norm)


class Keywords(TypedDict, total=False):
    """The same, as keyword arguments of the optimizers."""

    model: HasBuffers | None
    batch: Batch
    adaptive: bool
    eta: float
    every: int
    max_norm: float | None
    foreach: bool
    eps: float
