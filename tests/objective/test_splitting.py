"""Losses of batches: means over what counts, sums, and samples that depend on each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatkit import HessianOperator, Objective, analyze
from flatkit.errors import NonAdditiveLossError
from flatkit.measures.forecast import forecast_of
from tests.cases import function_of

N = 12


def dense(model, value):
    """Return L, ∇L and ∇²L of value(model) by plain autograd."""
    function, theta = function_of(model, value)
    jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
    return function(theta), jacobian(function, theta), hessian(function, theta)


def agrees(objective, model, value):
    loss, gradient, hessian = dense(model, value)
    assert objective.loss() == pytest.approx(float(loss), rel=1e-11)
    torch.testing.assert_close(objective.gradient(), gradient, rtol=1e-9, atol=1e-12)
    vector = torch.linspace(-1, 1, len(gradient)).double()
    product = HessianOperator(objective) @ vector
    torch.testing.assert_close(product, hessian @ vector, rtol=1e-8, atol=1e-10)  # pyright: ignore


def scores(wide=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, wide)).double()


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def classes(count=N):
    return torch.arange(count) * 7 % 3


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = scores()

    def forward(self, x):
        hidden = self.inner(x)
        return hidden - hidden.mean(0)


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = scores(), scores()

    def forward(self, left, right):
        return F.normalize(self.left(left)), F.normalize(self.right(right))


def dice(outputs, targets):
    chosen, wanted = outputs.softmax(1)[:, 1], (targets == 1).double()
    return 1 - 2 * (chosen * wanted).sum() / (chosen.sum() + wanted.sum())


def survival(outputs, targets):
    order = targets[:, 0].argsort(descending=True)
    risk, event = outputs[order, 0], targets[order, 1]
    return -((risk - torch.logcumsumexp(risk, 0)) * event).sum() / event.sum()


def correlation(outputs, targets):
    a, b = outputs[:, 0] - outputs[:, 0].mean(), targets - targets.mean()
    return 1 - (a * b).sum() / (a.norm() * b.norm())


def contrast(outputs, targets):
    logits = 3 * outputs[0] @ outputs[1].T
    places = torch.arange(len(logits))
    return (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2


def each_against_the_batch(outputs, targets):
    return -(F.normalize(outputs) @ F.normalize(outputs).T).log_softmax(1).diag()


def whitened():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False))
    torch.manual_seed(0)
    return nn.Sequential(model, nn.Tanh(), nn.Linear(5, 3)).double().eval()


X, TIMES = numbers(N, 4), torch.stack([numbers(N).abs(), (torch.arange(N) % 3 > 0).double()], 1)
mean = F.cross_entropy
COUPLED = {
    "dice": (scores, dice, (X, classes())),
    "survival": (scores, survival, (X, TIMES)),
    "correlation": (scores, correlation, (X, numbers(N))),
    "contrast": (TwoTowers, contrast, (X, numbers(N, 4) - X, classes())),
    "a value per sample": (scores, each_against_the_batch, (X, classes())),
    "features centred by the batch": (Centred, mean, (X, classes())),
    "batch statistics": (whitened, mean, (X, classes())),
    "batch statistics, a value per sample": (whitened, "cross_entropy", (X, classes())),
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_depend_on_each_other_are_one_batch_or_refused(name):
    make, loss, (*inputs, targets) = COUPLED[name]
    data = (*inputs, targets)
    with pytest.raises(NonAdditiveLossError, match=f"depend on each other.*`chunk_size` to {N}"):
        Objective(make(), loss, data, chunk_size=N // 2)
    plain = mean if loss == "cross_entropy" else loss
    for chunk_size in (None, N):
        objective = Objective(make(), loss, data, chunk_size=chunk_size)
        check = objective.examination["additive"]
        assert check.passed is False and "one batch" in check.how
        agrees(objective, make(), lambda run: plain(run(*inputs), targets).mean())


def test_a_sum_over_samples_that_depend_on_each_other_is_refused_as_a_sum():
    with pytest.raises(NonAdditiveLossError, match=r"a sum.*of the mean"):
        Objective(whitened(), nn.CrossEntropyLoss(reduction="sum"), (X, classes()))


def test_what_does_not_split_goes_at_once_also_where_chunks_would_be_smaller(monkeypatch):
    monkeypatch.setattr("flatkit.objective.function.rows_at_once", lambda objective: 5)
    data = (X, classes())
    assert Objective(scores(), dice, data).chunk_size == N
    monkeypatch.setattr("flatkit.objective.proofs.splitting.free_bytes", lambda device: 1000)
    with pytest.raises(NonAdditiveLossError, match=r"free memory.*`chunk_size` to 12"):
        Objective(scores(), dice, data)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(8, 4), nn.Linear(4, 8)

    def forward(self, tokens):
        return self.out(torch.tanh(self.table(tokens)))


def padded(count, value, lengths):
    generator = torch.Generator().manual_seed(0)
    words, targets = torch.randint(1, 8, (2, count, 6), generator=generator)
    for row in range(count):
        targets[row, lengths(row) :] = value
    return words, targets


def token_mean(value):
    def loss(outputs, targets):
        return F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=value)

    return loss


LAYOUTS = {
    "sorted": (24, lambda row: 6 if row < 8 else 1 + row % 5),
    "alternating": (6, lambda row: 3 + 3 * (row % 2)),
    "one short sentence": (400, lambda row: 2 if row == 333 else 6),
}


@pytest.mark.parametrize("value", [0, -100])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk_size", [1, 8])
def test_means_over_tokens_that_count_are_found_out_however_data_lie(layout, value, chunk_size):
    words, targets = padded(LAYOUTS[layout][0], value, LAYOUTS[layout][1])
    model, loss = Reader().double(), token_mean(value)
    objective = Objective(model, loss, (words, targets), chunk_size=chunk_size)
    assert objective.loss() == pytest.approx(float(loss(model(words), targets).detach()), rel=1e-11)
    assert objective.describe()["mean_over"] == f"labels that are not {value}"


def masked(outputs, targets):
    errors = (outputs - targets["wanted"]).square()
    return (errors * targets["mask"]).sum() / targets["mask"].sum()


def without_missing(outputs, targets):
    known = ~targets.isnan()
    return (outputs[known] - targets[known]).square().mean()


def by_weights(outputs, targets):
    return (targets["w"] * (outputs - targets["wanted"]).square().mean(1)).sum() / targets[
        "w"
    ].sum()


def with_targets(**parts):
    return {"input": X, **parts}


MASK = (numbers(N, 3) > 0).double()
MEANS = {
    "a mask": (masked, with_targets(wanted=numbers(N, 3), mask=MASK)),
    "missing values": (without_missing, (X, numbers(N, 3).masked_fill(MASK == 0, torch.nan))),
    "weights of samples": (by_weights, with_targets(wanted=numbers(N, 3), w=1 + numbers(N).abs())),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_that_count_otherwise_are_found_out(name):
    loss, data = MEANS[name]
    targets = data if isinstance(data, dict) else data[1]
    objective = Objective(scores(), loss, data, chunk_size=5)
    agrees(objective, scores(), lambda run: loss(run(X), targets))


def by_class(outputs, targets):
    return F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 5.0, 0.1]).double())


def without_a_class(outputs, targets):
    return F.cross_entropy(outputs, targets, ignore_index=0)


def hardest_half(outputs, targets):
    values = F.cross_entropy(outputs, targets, reduction="none")
    return values.topk(len(values) // 2).values.mean()


def root_of_the_mean(outputs, targets):
    return (outputs - F.one_hot(targets, 3)).square().mean().sqrt()


def alike_of_a_class(outputs, targets):
    unit = F.normalize(outputs, dim=1)
    near = (unit @ unit.T).masked_fill(torch.eye(len(unit), dtype=torch.bool), -1e9)
    same = (targets[:, None] == targets) & ~torch.eye(len(unit), dtype=torch.bool)
    return -(near.log_softmax(1) * same).sum(1).div(same.sum(1).clamp(min=1)).mean()


@pytest.mark.parametrize(
    "loss", [by_class, without_a_class, hardest_half, root_of_the_mean, alike_of_a_class]
)
def test_a_mean_with_weights_that_do_not_show_is_one_batch_or_refused(loss, monkeypatch):
    with pytest.raises(NonAdditiveLossError, match=r"not a mean.*`chunk_size`"):
        Objective(scores(), loss, (X, classes()), chunk_size=5)
    for chunk_size in (None, N):
        objective = Objective(scores(), loss, (X, classes()), chunk_size=chunk_size)
        assert "one batch" in objective.examination["additive"].how
        agrees(objective, scores(), lambda run: loss(run(X), classes()))
    monkeypatch.setattr("flatkit.objective.function.rows_at_once", lambda objective: 5)
    monkeypatch.setattr("flatkit.objective.proofs.splitting.free_bytes", lambda device: 1000)
    with pytest.raises(NonAdditiveLossError, match=r"not a mean.*`chunk_size`"):
        Objective(scores(), loss, (X, classes()))


def with_little_of_the_batch(outputs, targets):
    return F.cross_entropy(outputs, targets) + 2e-3 * outputs.mean(0).square().sum()


def test_coupling_that_hides_in_the_rounding_of_32_bits_is_seen():
    data = X.float(), classes()
    with pytest.raises(NonAdditiveLossError, match=r"depend on each other.*by \de-0[567]"):
        Objective(scores().float(), with_little_of_the_batch, data, chunk_size=4)
    objective = Objective(scores().float(), with_little_of_the_batch, data)
    check = objective.examination["apart"]
    assert check.passed is False and "one batch" in check.how and not objective.divisible
    plain = Objective(scores().float(), F.cross_entropy, data, chunk_size=4)
    check = plain.examination["apart"]
    assert check.passed and check.error is not None and check.error < 1e-12


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = scores().float()

    def forward(self, x):
        return self.inner[2](self.inner[:2](x).float().to(torch.float32).to(x.dtype))


def test_rounding_inside_the_model_is_no_coupling():
    objective = Objective(Narrow(), F.cross_entropy, (X.float(), classes()), chunk_size=4)
    assert objective.examination["apart"].passed is not False


@pytest.mark.parametrize("batchnorm", ["eval", "train"])
def test_a_sum_is_refused_and_says_what_it_would_mean(batchnorm):
    loss = nn.CrossEntropyLoss(reduction="sum")
    with pytest.raises(NonAdditiveLossError, match=r"not a mean .* but a sum.*12 times those"):
        Objective(scores(), loss, (X, classes()), batchnorm=batchnorm, chunk_size=5)


def test_losses_under_batch_statistics_are_looked_at_given_the_outputs():
    plain = Objective(scores(), mean, (X, classes()), batchnorm="train", chunk_size=5)
    assert plain.examination["additive"].passed
    for loss in (dice, by_class):
        with pytest.raises(NonAdditiveLossError, match="not a mean"):
            Objective(scores(), loss, (X, classes()), batchnorm="train", chunk_size=5)


def test_one_odd_sample_among_many_is_looked_at():
    """The one sample of a class that a loss leaves out must not be missed."""
    targets = torch.zeros(500).long()
    targets[317] = 2
    x = numbers(500, 4)
    objective = Objective(
        scores(), lambda o, t: F.cross_entropy(o, t, ignore_index=2), (x, targets)
    )
    assert "one batch" in objective.examination["additive"].how
    others = targets != 2
    agrees(objective, scores(), lambda run: mean(run(x[others]), targets[others]))


class Neighbours(nn.Module):
    """A network on the nodes of one graph: it takes all of them, or none."""

    def __init__(self):
        super().__init__()
        self.inner = scores()
        self.register_buffer("mixing", numbers(N, N).softmax(1))

    def forward(self, nodes):
        return self.inner(torch.tanh(self.mixing @ nodes))


def test_a_model_that_takes_all_samples_or_none_is_measured_and_examined_whole():
    model, data = Neighbours(), (numbers(N, 4), classes())
    objective = Objective(model, "cross_entropy", data)
    agrees(objective, model, lambda run: F.cross_entropy(run(data[0]), data[1]))
    found = objective.examination
    assert found["additive"].passed is False and objective.num_chunks == 1
    assert found["gradient"].passed and found["smooth"].passed
    report = analyze(model, "cross_entropy", data, measures=["loss", "trace"])
    assert report.result("loss").value == pytest.approx(objective.loss())
    assert forecast_of(objective, {"loss": 1.0}).gradient > 0


class Similarities(nn.Module):
    """Scores of every sample with every other one, by a temperature that is a number."""

    def __init__(self):
        super().__init__()
        self.left, self.right = scores(), scores()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, left, right):
        return self.scale.exp() * self.left(left) @ self.right(right).T


def test_outputs_that_are_no_rows_of_samples_are_measured_as_one_batch():
    def both(outputs, targets):
        places = torch.arange(len(outputs))
        return (F.cross_entropy(outputs, places) + F.cross_entropy(outputs.T, places)) / 2

    model, left, right = Similarities(), numbers(N, 4), numbers(N, 4).flip(0)
    pairs = [((left[row], right[row]), 0) for row in range(N)]
    objective = Objective(model, both, pairs)
    agrees(objective, model, lambda run: both(run(left, right), None))
    assert objective.num_chunks == 1
