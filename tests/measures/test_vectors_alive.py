"""How many vectors as long as the weights a default analysis holds at once, of a large network."""

import torch
from torch import nn

import flatkit
from flatkit.flatness import functions, rounds, sphere_lbfgs
from flatkit.hessian.memory import _Ledger  # pyright: ignore[reportPrivateUsage]
from flatkit.landscape import stacked
from flatkit.measures import ball, loss_slice, session
from flatkit.measures.watching import Silent
from flatkit.spectrum import krylov, xtrace

_BUDGET = 150.0


def as_if_large(monkeypatch, vector):
    """Let a network of vectors of so few bytes be cut as a ResNet-18 of 11 million weights is."""
    monkeypatch.setattr(rounds, "_MOST_NUMBERS", 1)
    monkeypatch.setattr(sphere_lbfgs, "_MOST_NUMBERS", 1)
    monkeypatch.setattr(functions, "_MULTIPLICATIONS", 1)
    monkeypatch.setattr(stacked, "MEMORY", vector)
    monkeypatch.setattr(session, "_LARGE", 1)
    monkeypatch.setattr(loss_slice, "_LARGE", 1)
    monkeypatch.setattr(session, "_SEEN_BYTES", 6 * vector)
    monkeypatch.setattr(session, "_BASIS_BYTES", 13 * vector)
    monkeypatch.setattr(ball, "_BYTES", 6 * vector)
    monkeypatch.setattr(xtrace, "_KEPT_BYTES", 6 * vector)
    for module in (session, krylov, ball):
        monkeypatch.setattr(module, "KEPT_BYTES", 24 * vector)


class Held(Silent):
    """Notes how many whole vectors are held between two pieces of work, at most.

    Args:
        ledger: that counts.
        vector: bytes of one.
    """

    def __init__(self, ledger, vector):
        self.ledger, self.vector, self.most = ledger, vector, 0

    def look(self, schedule):
        alive = [storage for ref in self.ledger._live.values() if (storage := ref()) is not None]
        held = sum(storage.nbytes() // self.vector for storage in alive)
        self.most = max(self.most, held)


def test_a_default_analysis_holds_few_vectors_between_its_pieces_of_work(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU())
    model.append(nn.Linear(60, 10))
    vector = 4 * sum(p.numel() for p in model.parameters())
    as_if_large(monkeypatch, vector)
    data = (torch.randn(24, 60), torch.randint(10, (24,)))
    task = flatkit.Task(model, "cross_entropy", data)
    with _Ledger() as ledger:
        held = Held(ledger, vector)
        report = flatkit.analyze(task, progress=held, budget=_BUDGET)
    assert report.analysis["ended"] == "budget" and not report.analysis["unmeasured"]
    # 46 here: 14 of the Krylov basis, 8 of the quadratic model; most others are of six searches
    # that wait in turn, each within an ascent. A vector that another process keeps is too many.
    assert held.most <= 46
