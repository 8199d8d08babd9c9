"""Dear passes that were kept: found again bit for bit, counted the same, and never mixed up."""

import importlib.util
import json
import signal
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from flatkit.files import Store
from flatkit.hessian import HessianOperator
from flatkit.hessian.autotune import Choice
from flatkit.hessian.products import central_difference, double_backward
from flatkit.hessian.reference import Reference
from flatkit.landscape.evaluate import evaluator
from flatkit.objective import Objective
from flatkit.objective import kept as kept_passes
from flatkit.objective.digest import digest_of
from flatkit.objective.kept import Answer, Passes, digest_of_tensors
from flatkit.spectrum.lanczos import lanczos
from tests.processes import eigenvalue_until_killed, small_task, start


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "a.journal", {}) as store:
        yield store


def keeping(store, least_seconds=0.0):
    objective = small_task()
    objective.kept = Passes(store, digest_of(objective), least_seconds=least_seconds)
    return objective


def vectors(objective, count=3):
    return torch.randn(count, objective.num_parameters, generator=torch.Generator().manual_seed(5))


def errors(hessian, rows):
    return [hessian.product_errors(rows, torch.ones(3), scale=1.0)]


PASSES = {
    "evaluate": lambda o: [*o.evaluate()],
    "elsewhere": lambda o: [*o.evaluate(2 * o.theta)],
    "gradient": lambda o: [*o.loss_and_gradient()],
    "of a block": lambda o: [*o.block("2.*").loss_and_gradient()],
    "product": lambda o: [HessianOperator(o, engine="double_backward") @ vectors(o)[0]],
    "products": lambda o: [HessianOperator(o, engine="double_backward").matmat(vectors(o))],
    "of kept chunks": lambda o: [HessianOperator(o, retain_graph=True).gradient()],
    "errors": lambda o: errors(HessianOperator(o, engine="double_backward"), vectors(o)),
}


@pytest.mark.parametrize("name", PASSES)
def test_an_answer_is_what_was_computed_and_costs_as_much(store, name, monkeypatch):
    ask, first = PASSES[name], keeping(store)
    found = ask(first)
    second = keeping(store)
    forwards = []
    monkeypatch.setattr(Objective, "outputs", lambda *_, **__: forwards.append(1))
    for expected, again in zip(found, ask(second), strict=True):
        if isinstance(expected, torch.Tensor):
            assert torch.equal(again, expected) and again.dtype == expected.dtype
            assert not again.requires_grad and again.is_contiguous()
        else:
            assert again == expected and type(again) is type(expected)
    assert not forwards
    costs = [(o.cost.losses, o.cost.gradients, o.cost.matvecs) for o in (first, second)]
    assert costs[0] == costs[1]


def test_the_passes_agree_with_those_that_are_not_kept(store):
    plain, kept = small_task(), keeping(store)
    for ask in PASSES.values():
        for _ in range(2):
            for expected, found in zip(ask(plain), ask(kept), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_kept_chunks_costs_nothing_after_a_replayed_product_either(store):
    for _ in range(2):
        objective = keeping(store)
        hessian = HessianOperator(objective, retain_graph=True)
        assert torch.equal(hessian.matvec(objective.theta), hessian.matvec(objective.theta))
        hessian.gradient()
        assert (objective.cost.gradients, objective.cost.matvecs) == (0, 2)


def test_quick_passes_are_neither_kept_nor_digested(store, monkeypatch):
    objective = keeping(store, least_seconds=60)
    monkeypatch.setattr(kept_passes, "digest_of_tensors", lambda *_: pytest.fail("it digests"))
    hessian = HessianOperator(objective)
    for _ in range(2):
        objective.evaluate()
        objective.gradient()
        hessian.matvec(objective.theta)


def test_a_long_vector_of_a_quick_pass_is_not_kept(store):
    passes = Passes(store, "f", least_seconds=0.1)
    given = torch.ones(2**20)
    for seconds, kept in ((0.15, False), (1.0, True)):
        passes.keep("value", [given], (1.0,), seconds)
        assert (passes.find("value", [given]) == (1.0,)) is kept
    passes.keep("value", [given + 1], (1.0,), 0.05)  # it is quick now: nothing is looked for
    assert passes.find("value", [given]) is None


@pytest.mark.parametrize(
    "answer",
    [
        (0.1 + 0.2, None, float("inf")),
        (torch.tensor([0.1, float("nan")]).double(), 3.0, torch.ones(2, 3, dtype=torch.bfloat16)),
        (torch.empty(0, 4), torch.tensor(2), torch.ones(3, 2).t(), torch.tensor([1j, 2])),
    ],
    ids=["numbers", "dtypes", "shapes"],
)
def test_answers_come_back_with_dtype_shape_and_bits(store, answer: Answer):
    passes = Passes(store, "f", least_seconds=0)
    given = [torch.ones(2)]
    passes.keep("what", given, answer, 1.0)
    found = passes.find("what", given)
    assert found is not None
    for expected, part in zip(answer, found, strict=True):
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(part, expected, rtol=0, atol=0, equal_nan=True)
        else:
            assert part == expected


def test_other_questions_have_other_answers(store):
    passes = Passes(store, "f", least_seconds=0)
    given = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    passes.keep("what", given, (1.0,), 1.0)
    for what in ("what", "else"):
        passes.keep(what, [torch.zeros(1)], (0.0,), 1.0)
    assert passes.find("what", given) == (1.0,)
    assert passes.find("else", given) is None
    assert passes.find("what", given[::-1]) is None
    assert passes.find("what", [torch.tensor([1.0]), torch.tensor([2.0, 3.0])]) is None
    assert passes.find("what", [given[0].double(), given[1]]) is None
    assert Passes(store, "g").find("what", given) is None
    assert passes.part(["a"], given[0]).find("what", given) is None


def test_copies_on_other_models_keep_nothing(store):
    objective = keeping(store)
    assert objective.with_model(nn.Sequential(*objective.model.children())).kept is None
    assert objective.in_double().kept is None
    assert objective.block("0.*").kept is not None


class Weighted(nn.Module):
    """A loss that holds a tensor."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, outputs, targets):
        return self.weight * (outputs - targets).square().mean(1)


def network(*, scale=1.0, mean=0.0, frozen=1.0, momentum=0.1):
    norm = nn.BatchNorm1d(2, momentum=momentum)
    model: Any = nn.Sequential(nn.Linear(2, 2), norm, nn.Linear(2, 1))
    for parameter in model.parameters():
        nn.init.constant_(parameter, scale)
    nn.init.constant_(model[1].running_mean, mean)
    nn.init.constant_(model[2].bias.requires_grad_(False), frozen)
    return model


def function(*, inputs=1.0, targets=0.0, loss: Any = "mse", samples=None, **changes):
    settings = {k: changes.pop(k) for k in ("chunk_size", "dtype") if k in changes}
    data = (torch.full((6, 2), inputs), torch.full((6, 1), targets))
    data[0][0, 0] += 1
    model = network(**changes)
    return Objective(model, loss, data, samples=samples, examine=False, **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": 2.0},
        {"targets": 1.0},
        {"samples": 5},
        {"mean": 0.5},
        {"frozen": 2.0},
        {"momentum": 0.2},
        {"loss": "mae"},
        {"loss": Weighted(1.0)},
        {"chunk_size": 2},
        {"dtype": torch.float64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_function_depends_on_is_in_its_digest(changes):
    loss = nn.L1Loss() if changes.get("loss") == "mae" else None
    changed = function(**{**changes, **({"loss": loss} if loss else {})})
    assert digest_of(changed) != digest_of(function())


def test_the_point_and_the_cuts_of_memory_are_not_in_the_digest(monkeypatch):
    first, second = function(scale=1.0), function(scale=2.0)
    assert digest_of(first) == digest_of(second)
    assert digest_of(function(loss=Weighted(1.0))) == digest_of(function(loss=Weighted(1.0)))
    assert digest_of(function(loss=Weighted(1.0))) != digest_of(function(loss=Weighted(2.0)))
    big = torch.arange(32).view(4, 8)
    whole = digest_of_tensors("", [big])
    monkeypatch.setattr(kept_passes, "_PIECE", 100)
    assert digest_of_tensors("", [big]) == whole
    assert digest_of_tensors("", [big.t().contiguous().t()]) == whole
    assert digest_of_tensors("", [big.view(8, 4)]) != whole


def test_blocks_whose_other_parameters_are_held_elsewhere_are_other_functions(store):
    point, found = torch.ones(4), []
    for scale in (1.0, 2.0, 1.0):
        plain, objective = function(scale=scale), function(scale=scale)
        objective.kept = Passes(store, digest_of(objective), least_seconds=0)
        found.append(objective.block("0.weight").loss(point))
        assert found[-1] == plain.block("0.weight").loss(point)
        assert objective.block("0.bias").loss(torch.zeros(2)) != found[-1]
    assert found[0] == found[2] != found[1]


class Scaled(nn.Module):
    def __init__(self, scale, cache=False):
        super().__init__()
        self.body, self.scale, self.cache = nn.Linear(2, 1), scale, cache
        self.seen: Any = None

    def forward(self, x):
        if self.cache:
            self.seen = self.body(x).detach() * 1.0
        return self.body(x) * self.scale


class Margin:
    def __init__(self, margin):
        self.margin = margin

    def __call__(self, outputs, targets):
        return (outputs - targets - self.margin).square().mean(1)

    def method(self, outputs, targets):
        return self(outputs, targets)


def shifted(margin):
    def loss(outputs, targets):
        return (outputs - targets - margin).square().mean(1)

    return loss


def default(margin):
    return eval(f"lambda outputs, targets, margin={margin}: (outputs - targets - margin).mean(1)")


def of_a_notebook(margin):
    made: dict[str, Any] = {"__name__": "__main__"}
    code = f"""
def shift(x):
    return x - {margin}

def loss(outputs, targets):
    return shift(outputs - targets).square().mean(1)
"""
    exec(compile(code, "<ipython-input-1>", "exec"), made)
    return made["loss"]


def global_of_a_notebook(margin):
    made: dict[str, Any] = {"__name__": "__main__", "MARGIN": margin}
    code = "def loss(outputs, targets):\n    return (outputs - targets - MARGIN).square().mean(1)"
    exec(compile(code, "<ipython-input-1>", "exec"), made)
    return made["loss"]


VALUES = {
    "of an object": lambda value: function(loss=Margin(value)),
    "of a method": lambda value: function(loss=Margin(value).method),
    "of a partial": lambda value: function(loss=partial(Margin.method, Margin(value))),
    "of a closure": lambda value: function(loss=shifted(value)),
    "of a default": lambda value: function(loss=default(value)),
    "of a function in a notebook": lambda value: function(loss=of_a_notebook(value)),
    "of a variable in a notebook": lambda value: function(loss=global_of_a_notebook(value)),
    "of a model": lambda value: of_model(Scaled(value)),
    "of a constant tensor": lambda value: of_model(Scaled(torch.tensor(value))),
    "of settings": lambda value: of_model(Scaled(1.0), {"of": SimpleNamespace(value=value)}),
    "of a sparse buffer": lambda value: of_model(Scaled(1.0), sparse=(value * torch.eye(2))),
}


def of_model(model, settings=None, sparse=None):
    nn.init.ones_(model.body.weight)
    nn.init.ones_(model.body.bias)
    model.settings = settings
    if sparse is not None:
        model.register_buffer("adjacency", sparse.to_sparse())
    return Objective(model, "mse", (torch.ones(3, 2), torch.zeros(3, 1)), examine=False)


@pytest.mark.parametrize("where", VALUES)
def test_values_that_no_buffer_and_no_file_show_are_in_the_digest(where):
    one, same, other = (digest_of(VALUES[where](value)) for value in (1.0, 1.0, 2.0))
    assert one == same != other


def test_hashes_and_addresses_are_not_in_the_digest():
    one, other = ({"of": SimpleNamespace(hash=hash(text), size=3)} for text in ("a", "b"))
    assert digest_of(of_model(Scaled(1.0), one)) == digest_of(of_model(Scaled(1.0), other))


def test_what_a_layer_keeps_of_a_pass_is_not_in_the_digest():
    one, other = (of_model(Scaled(1.0, cache=True)) for _ in range(2))
    other.evaluate(3 * other.theta)
    assert digest_of(one) == digest_of(other)


@pytest.mark.filterwarnings("ignore:Sparse CS:UserWarning")  # torch: in beta
@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_tensors_have_a_digest_of_their_numbers(layout):
    def digest(scale):
        dense = scale * torch.diag(torch.ones(4), 1)
        return digest_of_tensors("", [getattr(dense, f"to_sparse_{layout}", dense.to_sparse)()])

    assert digest(1.0) == digest(1.0) != digest(2.0)


def test_edited_code_of_the_user_is_another_function(tmp_path):
    def built(loss):
        file = tmp_path / "users.py"
        file.write_text(f"def loss(outputs, targets):\n    return ({loss}).mean(1)\n")
        spec = importlib.util.spec_from_file_location("users", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return digest_of(function(loss=module.loss))

    first = built("(outputs - targets) ** 2")
    assert built("(outputs - targets) ** 2") == first
    assert built("(outputs - targets) ** 4") != first


def test_a_killed_search_goes_on_with_the_missing_products_alone(tmp_path, monkeypatch):
    path, fatal = tmp_path / "a.journal", 6
    process = start(eigenvalue_until_killed, path, fatal)
    process.join()
    assert process.exitcode == -signal.SIGKILL

    products, prepared = [], HessianOperator._prepared

    def counted(self, *arguments, **options):
        products.append(1)
        return prepared(self, *arguments, **options)

    monkeypatch.setattr(HessianOperator, "_prepared", counted)
    objective = small_task()
    with monkeypatch.context() as patch, Store(path, {}) as store:
        patch.setattr("flatkit.hessian.operator.choose", lambda *_, **__: pytest.fail("chosen"))
        objective.kept = Passes(store, digest_of(objective), least_seconds=0)
        hessian = HessianOperator(objective)
        found = lanczos(hessian, generator=torch.Generator().manual_seed(0))
    assert len(products) == found.matvecs - (fatal - 1)

    plain = small_task()
    again = HessianOperator(plain, engine=hessian.choice.engine)
    expected: Any = lanczos(again, generator=torch.Generator().manual_seed(0))
    assert found.vectors is not None
    assert torch.equal(found.value, expected.value) and torch.equal(expected.vectors, found.vectors)
    assert plain.cost.matvecs == objective.cost.matvecs


@pytest.mark.parametrize("rejected", [{}, {"layers": "costs 2.0 gradients here"}])
@pytest.mark.parametrize(
    "reference",
    [
        None,
        Reference(None, "nothing"),
        Reference(double_backward, "double backward in float64"),
        Reference(partial(central_difference, steps=0.1), "central differences", in_double=False),
    ],
    ids=["none", "nothing", "formula", "with a step"],
)
def test_a_choice_of_an_engine_survives_as_json(reference, rejected):
    choice = Choice("layers", 1e-7, "truth", None, rejected, reference, float("inf"))
    again: Any = Choice.from_json(json.loads(json.dumps(choice.to_json())))
    assert again.settings() == choice.settings() and again.tolerance == choice.tolerance
    if isinstance(reference, Reference) and isinstance(reference.recipe, partial):
        recipe = again.reference.recipe
        assert (recipe.func, recipe.keywords) == (central_difference, {"steps": 0.1})
        assert (again.reference.against, again.reference.in_double) == (
            "central differences",
            False,
        )
    else:
        assert again == choice


@pytest.mark.parametrize("quantities", [("loss", "accuracy"), ("gradient_norm", "accuracy")])
def test_the_points_of_a_slice_are_found_again_unless_buffers_move(store, quantities, monkeypatch):
    steps = [[0.0], [0.5], [1.0]]

    def values(objective, **options):
        theta, directions = objective.theta, torch.ones(1, objective.num_parameters)
        found = evaluator(
            objective, theta, directions, quantities=quantities, batched=False, **options
        )
        return [found.values([step])[0] for step in steps]

    def built():
        objective = function(loss=nn.L1Loss())
        objective.kept = Passes(store, digest_of(objective), least_seconds=0)
        return objective

    first = values(built())
    moving = {"1.running_mean": torch.ones(2, 2)}
    moved = values(built(), statistics="interpolate", buffers=moving)
    again = built()
    monkeypatch.setattr(Objective, "outputs", lambda *_, **__: pytest.fail("it is computed"))
    assert values(again) == first != moved
    assert again.cost.losses + again.cost.gradients == len(steps)
