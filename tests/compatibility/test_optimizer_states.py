"""States of optimizers that version 0.1.0 saved: they load, and training goes on as it did there.

`python -m tests.compatibility.test_optimizer_states` wrote the files with that version. Each holds
the weights and the state after 3 steps, and the weights after 2 more.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from flatkit.optim import ASAM, GAM, GSAM, SAM

FOLDER = Path(__file__).parent
SAVED, MORE = 3, 2
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sam": (SAM, {"rho": 0.3}),
    "asam": (ASAM, {"rho": 0.7}),
    "gsam": (GSAM, {"rho": 0.3, "alpha": 0.6}),
    "gam": (GAM, {"rho": 0.3, "rho_prime": 0.1, "alpha": 0.7, "beta": 0.4, "gamma": 0.2}),
    "exact_gam": (GAM, {"mode": "exact", "rho": 0.3, "alpha": 0.8}),
}
BASES: dict[str, Any] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda parameters: AdamW(parameters, lr=0.03, weight_decay=0.1),
}
X = torch.sin(torch.arange(33, dtype=torch.float64)).reshape(11, 3)
Y = torch.arange(11) % 2


def built(kind: str, base: str, theta: Tensor, **other: Any) -> tuple[nn.Module, Any]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    nn.utils.vector_to_parameters(theta.clone(), model.parameters())
    make, options = KINDS[kind]
    # Every second step is a perturbed one: a state that forgets the number of steps is found out.
    return model, make(BASES[base](model.parameters()), every=2, **{**options, **other})


def run(model: nn.Module, optimizer: Any, steps: int) -> Tensor:
    """Return the weights [P] after some steps."""
    for _ in range(steps):
        optimizer.step(lambda: nn.functional.cross_entropy(model(X), Y))
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def write() -> None:
    for kind in KINDS:
        content = {}
        for base in BASES:
            model, optimizer = built(kind, base, torch.cos(torch.arange(26.0).double()))
            content[base] = {
                "weights": run(model, optimizer, SAVED),
                "state": copy.deepcopy(optimizer.state_dict()),
                "end": run(model, optimizer, MORE),
            }
        torch.save(content, FOLDER / f"optimizer_{kind}.pt")


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_version_0_1_0_goes_on_as_it_did_there(kind, base):
    saved = torch.load(FOLDER / f"optimizer_{kind}.pt", weights_only=True)[base]
    model, optimizer = built(kind, base, saved["weights"], rho=0.01)
    optimizer.load_state_dict(saved["state"])
    options = {name: value for name, value in KINDS[kind][1].items() if name != "mode"}
    assert {name: optimizer.param_groups[0][name] for name in options} == options
    end = run(model, optimizer, MORE)
    torch.testing.assert_close(end, saved["end"], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(end, saved["weights"], atol=1e-3)


if __name__ == "__main__":
    write()
