"""The top eigenvalue by SciPy's Lanczos over double backward: shares no code with flatkit."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn


def top_eigenvalue(model: nn.Module, mean_loss: Callable[[nn.Module], Tensor]) -> float:
    """Return λmax of the Hessian of `mean_loss` in the free parameters of a float64 model."""
    free = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in free]
    slopes = torch.autograd.grad(mean_loss(model), free, create_graph=True, materialize_grads=True)

    def product(vector: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(vector.reshape(-1)).split(sizes)
        dot = sum((g * v.view(g.shape)).sum() for g, v in zip(slopes, parts, strict=True))
        found = torch.autograd.grad(dot, free, retain_graph=True, materialize_grads=True)  # type: ignore[arg-type]
        return torch.cat([part.reshape(-1) for part in found]).numpy()

    size = sum(sizes)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)  # type: ignore[call-arg]
    start = np.random.default_rng(0).standard_normal(size)
    values = eigsh(
        operator,
        k=1,
        which="LA",
        tol=1e-10,  # type: ignore[arg-type]
        v0=start,
        return_eigenvectors=False,
    )
    return float(values[0])
