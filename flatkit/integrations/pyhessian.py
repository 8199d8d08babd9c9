"""PyHessian (Yao et al., 2020) as a second opinion, behind the same results."""

import time
import warnings

import torch
from torch import Tensor

from flatkit.errors import InvalidArgumentError, MissingDependencyError, NonFiniteError
from flatkit.objective.function import Objective
from flatkit.objective.model.copier import duplicate
from flatkit.objective.reading.randomness import undisturbed
from flatkit.results.status import Status
from flatkit.spectrum.estimate import Estimate
from flatkit.spectrum.operators import check_k


def pyhessian_eigenvalues(
    objective: Objective,
    *,
    k: int = 1,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
) -> Estimate:
    """Return the top eigenvalues that PyHessian finds, with its own defaults.

    Power iteration with deflation, which stops when an estimate changes by less than the
    tolerance; that is no bound of its error, so the residual of each pair is computed here, by
    flatkit's products. A parameter without a gradient makes PyHessian fail.

    Cost: up to k·max_iterations products of PyHessian's, and k of flatkit's.

    Raises:
        InvalidArgumentError: k > P, or inputs that are not one tensor.
        MissingDependencyError: PyHessian is not installed.
        NonFiniteError: it returned NaN.
    """
    try:
        from pyhessian import hessian  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingDependencyError(
            "`method` pyhessian needs the package pyhessian: pip install pyhessian"
        ) from error
    from flatkit.hessian import HessianOperator
    from flatkit.spectrum.estimate import residual_norms

    operator = HessianOperator(objective)
    check_k(operator, k)
    started = time.perf_counter()
    model = duplicate(objective.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in objective.space.names)
    if objective.space.complex_names or objective.elsewhere is not None:
        raise InvalidArgumentError(
            "PyHessian takes no complex parameters, nor weights that the loss or a function holds; "
            "leave `method` out"
        )
    chunk = next(objective.alone().chunks(objective.num_rows))  # it sees all samples
    data = _tensors(chunk.inputs, chunk.targets)

    def mean_loss(outputs: Tensor, _: Tensor) -> Tensor:
        return objective.share(outputs, chunk)

    with warnings.catch_warnings(), undisturbed():  # its starts are drawn on the GPU, if there
        warnings.filterwarnings("ignore", message="Using backward")  # PyHessian does so
        torch.manual_seed(seed)
        second = hessian(model, mean_loss, data=data, cuda=objective.device.type == "cuda")
        products = _watched(second.gradsH)
        values, vectors = second.eigenvalues(maxIter=max_iterations, tol=tolerance, top_n=k)
    objective.count(gradients=1, matvecs=len(products))
    seconds = time.perf_counter() - started
    rows = torch.stack([torch.cat([part.reshape(-1) for part in vector]) for vector in vectors])
    rows = rows.detach() / rows.detach().norm(dim=1, keepdim=True)
    found = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if not found.isfinite().all():
        raise NonFiniteError("PyHessian returned NaN or infinite eigenvalues")
    rounding = operator.product_errors(rows, found, scale=float(found.abs().max()))
    return Estimate(
        value=found,
        error=residual_norms(operator, found, rows) + rounding,
        error_kind="residual",
        status=Status.UNCHECKED_STOP,
        matvecs=len(products) + len(found),
        seconds=seconds,
        held=rows,
        notes={"stopped_on": "change of the estimate", "pyhessian_tolerance": tolerance},
    )


def _tensors(inputs: object, targets: object) -> tuple[Tensor, Tensor]:
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor):
        return inputs, targets
    raise InvalidArgumentError(
        "PyHessian takes a tensor of inputs and one of targets; this batch is a dictionary or tuple"
    )


def _watched(slopes: list[Tensor]) -> list[None]:
    """Return a list that grows by one entry at every product through the graph of a gradient."""
    products: list[None] = []
    for slope in slopes:
        if slope.requires_grad:
            slope.register_hook(lambda _: products.append(None))
            break
    return products


def explain_disagreement(ours: Estimate, theirs: Estimate) -> list[str]:
    """Return a sentence for each eigenvalue that the two see differently, or one that they agree.

    >>> one = Estimate(torch.tensor([5.0]), torch.tensor([1e-4]), "residual", "converged", 9, 0.0)
    >>> explain_disagreement(one, one)
    ['both agree within their residuals']
    """
    lines = []
    for number, (a, r, b, s) in enumerate(
        zip(
            ours.value.tolist(),
            ours.error.tolist(),
            theirs.value.tolist(),
            theirs.error.tolist(),
            strict=False,
        ),
        start=1,
    ):
        # Intervals so wide that any two overlap would show nothing.
        if abs(a - b) <= r + s and s <= 0.05 * abs(a):
            continue
        lines.append(f"eigenvalue {number}: {a:.6g} here, {b:.6g} by PyHessian; {_why(a, r, b, s)}")
    return lines or ["both agree within their residuals"]


def _why(ours: float, residual: float, theirs: float, theirs_residual: float) -> str:
    if theirs < 0 < ours:
        return (
            "PyHessian looks for the largest magnitude, which is at the negative end; flatkit for "
            "the largest value"
        )
    if theirs_residual > 10 * residual:
        return (
            f"its vector has a residual of {theirs_residual:.1e} against {residual:.1e}: it stops "
            "when its estimate changes little, which is before it is right"
        )
    return "both residuals are small: they hold different eigenvalues of a cluster or of both signs"
