"""Models in parts on several ranks, and what is found of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flatkit import FisherOperator, GaussNewtonOperator, HessianOperator, analyze
from flatkit.checkpoints import load_parts
from flatkit.checkpoints.readers.stored import StoredTensor
from flatkit.devices.joining import apart, current
from flatkit.measures import report as report_module
from flatkit.objective import Objective, kept
from flatkit.spectrum.lanczos import lanczos
from tests.devices.ranks_worker import SAMPLES, data, network, raised, vectors

KINDS = ("fully_shard", "DTensor") if hasattr(fsdp, "fully_shard") else ()
ENGINES: dict[str, Any] = {"DTensor": "double_backward", "fully_shard": "central_difference"}
"""Those that are chosen."""
EVERYTHING: dict[str, Any] = {
    "measures": [
        "loss",
        "accuracy",
        "gradient_norm",
        "top_eigenvalues",
        "max_gradient_norm",
        "zeroth_order_sharpness",
        "loss_slice",
    ],
    "rho": [0.1],
    "search_budget": 12,
    "num_eigenvalues": 1,
    "tolerance": 1e-2,
    "slice_points": 3,
    "slice_directions": 2,
    "progress": False,
}


def in_parts(kind: str, model: nn.Module | None = None) -> nn.Module:
    """Return the network, of which each rank holds a part, in training mode with gradients."""
    model, mesh = model or network(), init_device_mesh("cpu", (current().count,))
    if kind == "fully_shard":
        fsdp.fully_shard(model[0], mesh=mesh)  # pyright: ignore
        fsdp.fully_shard(model, mesh=mesh)
    else:
        cut(model, mesh)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    return model.train()


def cut(model: nn.Module, mesh: DeviceMesh) -> None:
    """Make DTensors of the parameters, cut along their last dimension; the last bias stays."""
    from torch.distributed.tensor import Shard, distribute_tensor

    for module in model.modules():
        own = vars(module)["_parameters"]
        for name, parameter in list(own.items()):
            if len(parameter) != 3:
                parts = distribute_tensor(parameter.detach(), mesh, [Shard(parameter.ndim - 1)])
                own[name] = nn.Parameter(parts)


def bits(model: nn.Module) -> list[Any]:
    """Return all that a model must get back, bit for bit."""

    def own(tensor: Any) -> Tensor:
        return tensor.to_local().clone() if hasattr(tensor, "to_local") else tensor.detach().clone()

    held = [[own(p), own(p.grad), p.requires_grad] for p in model.parameters()]
    return [held, [module.training for module in model.modules()]]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def passes(model: nn.Module, engine: Any = "auto") -> dict[str, Any]:
    objective = Objective(model, "cross_entropy", data(), chunk_size=10)
    hessian = HessianOperator(objective, engine=engine)
    v = vectors(objective.num_parameters)
    loss, gradient = objective.loss_and_gradient()
    largest = lanczos(hessian, k=1, tolerance=1e-3, generator=torch.Generator().manual_seed(5))
    moved = objective.loss_and_gradient(objective.theta + 0.1 * v[0])
    return {
        "loss": loss,
        "evaluated": list(objective.evaluate()),
        "gradient": gradient,
        "moved": list(moved),
        "product": hessian @ v[0],
        "products": hessian.matmat(v),
        "differentiable": differentiable(objective),
        "eigenvalues": largest.value,
        "error": largest.error,
        "settings": hessian.settings,
        "checks": {check.name: check.passed for check in objective.examination.checks},
    }


def differentiable(objective: Objective) -> bool:
    """Return whether outputs at a point can be differentiated, now that gradients were taken."""
    outputs = objective.outputs(objective.theta.clone().requires_grad_(), next(objective.chunks()))
    return outputs.requires_grad


def analysis(model: nn.Module, journal: Path | None = None) -> dict[str, Any]:
    """Analyze with every pass kept, if there is a journal; give the report.

    With how many products were made, and not taken from the journal.
    """
    made, plain = [], HessianOperator._prepared

    def counted(self: HessianOperator, *given: Any, **more: Any) -> Any:
        made.append(1)
        return plain(self, *given, **more)

    dear, kept.LEAST_SECONDS = kept.LEAST_SECONDS, 0.0
    short, report_module._SHORT = report_module._SHORT, 0.0  # else it goes when all is done
    HessianOperator._prepared = counted  # type: ignore[method-assign]
    try:
        report = analyze(model, "cross_entropy", data(), journal=journal, **EVERYTHING)
    finally:
        HessianOperator._prepared = plain  # type: ignore[method-assign]
        kept.LEAST_SECONDS, report_module._SHORT = dear, short
    return {**json.loads(report.to_json()), "made": len(made)}


class Unruly(nn.Module):
    """Has an operation for which DTensors have no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cdist(x, x).sum()


def loaded(model: nn.Module, kind: str, folder: Path) -> dict[str, Any]:
    """Load checkpoints into other models in parts; return whether their bits come back.

    One is saved by all ranks, one whole by the first.
    """
    checkpoint: Any = torch.distributed.checkpoint
    by_all, by_one, wrong = (folder / f"{kind} {name}" for name in ("all", "one", "wrong"))
    checkpoint.save(model.state_dict(), checkpoint_id=by_all)
    if current().is_first:
        checkpoint.save(network().state_dict(), checkpoint_id=by_one, no_dist=True)
        torch.save({"0.weight": torch.zeros(3)}, wrong)
    current().gathered("saved")
    found: dict[str, Any] = {}
    other = model
    for name, path in {"all": by_all, "one": by_one}.items():
        other = in_parts(kind, shifted())
        read: list[int] = []
        plain = StoredTensor._read

        def counted(
            self: StoredTensor, start: int, nbytes: int, plain: Any = plain, read: Any = read
        ) -> Any:
            read.append(nbytes)
            return plain(self, start, nbytes)

        StoredTensor._read = counted  # type: ignore[method-assign]
        try:
            load_parts(path, other)
        finally:
            StoredTensor._read = plain  # type: ignore[method-assign]
        found[name] = same([b[0] for b in bits(other)[0]], [b[0] for b in bits(model)[0]])
        held = sum(part[0].nbytes for part in bits(model)[0])
        found[f"{name}: read"] = [sum(read), held]
    before = bits(other)
    found["wrong"] = raised(lambda: load_parts(wrong, other))
    found["kept"] = same(before, bits(other))
    return found


def shifted() -> nn.Module:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    return model


def refusals(model: nn.Module, kind: str) -> dict[str, str]:
    x, y = data()
    objective = Objective(model, "cross_entropy", (x, y), chunk_size=SAMPLES)

    def alone() -> object:
        with apart():
            return Objective(model, "cross_entropy", (x, y))

    norm: dict[str, Any] = {"batchnorm": "train", "chunk_size": 7}
    found: dict[str, Callable[[], object]] = {
        "alone": alone,
        "dtype": lambda: Objective(model, "cross_entropy", (x, y), dtype=torch.float32),
        "batchnorm": lambda: Objective(model, "cross_entropy", (x, y), **norm),
        "layers": lambda: HessianOperator(objective, engine="layers") @ objective.theta,
        "twice": lambda: HessianOperator(objective, engine="double_backward") @ objective.theta,
        "gauss-newton": lambda: GaussNewtonOperator(objective) @ objective.theta,
        "fisher": lambda: FisherOperator(objective) @ objective.theta,
        "meta": lambda: Objective(on_meta(kind), "cross_entropy", (x, y)),
        "no rule": lambda: Objective(unruly(kind), "cross_entropy", (x, y)),
        "mixed": lambda: Objective(of_two_dtypes(), "cross_entropy", (x, y)),
    }
    return {name: raised(work) for name, work in found.items()}


def on_meta(kind: str) -> nn.Module:
    return in_parts(kind, network().to("meta"))


def unruly(kind: str) -> nn.Module:
    model = in_parts(kind)
    if kind == "DTensor":
        model.append(Unruly())  # pyright: ignore
    return model


def of_two_dtypes() -> nn.Module:
    model = network()
    model[0].float()  # pyright: ignore
    return in_parts("DTensor", model)


def models(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is found of models in parts, by how they are cut."""
    for kind in KINDS:
        model = in_parts(kind)
        before, two = bits(model), current().count == 2
        found = passes(model, "auto" if two else ENGINES[kind])
        found["untouched"] = [same(before, bits(model))]
        for name in ("report", "again") if two else ():  # two ranks are enough
            found[name] = analysis(model, folder / f"{kind}.journal")
            found["untouched"].append(same(before, bits(model)))
        found["loaded"] = loaded(model, kind, folder)
        if two:
            found["refusals"] = refusals(model, kind)
        found["untouched"].append(same(before, bits(model)))
        yield kind, found
