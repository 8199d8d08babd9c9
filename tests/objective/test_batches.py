"""How batches reach model and loss: whole, in parts, weighted; graphs and boxes as they come."""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportUnusedExpression=false

import copy
import dataclasses
import threading
from collections import UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import flatkit
from flatkit import HessianOperator, Objective
from flatkit.errors import InvalidArgumentError, NonAdditiveLossError, UserCodeError
from flatkit.flatness import m_sharpness
from flatkit.landscape.evaluate import evaluator

N = 11
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(1))
W = torch.rand(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


class Takes(nn.Module):
    """A network behind another signature."""

    def __init__(self):
        super().__init__()
        self.net = net()


class ByBatch(Takes):
    def forward(self, batch):
        return self.net(batch["x"])


class ByAttribute(Takes):
    def forward(self, batch):
        return self.net(batch.x)


class ByPair(Takes):
    def forward(self, pair):
        return self.net(torch.cat([pair[0], pair[1]], 1))


class BySeveral(Takes):
    def forward(self, first, second):
        return self.net(torch.cat([first, second], 1))


class Gives(Takes):
    """Returns its own loss from a whole batch."""

    def forward(self, batch):
        scores = self.net(batch["x"])
        return {"loss": F.cross_entropy(scores, batch["label"]), "logits": scores}


def own(outputs, batch):
    return F.cross_entropy(outputs, batch["label"])


def per_sample(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def nested(outputs, targets):
    return F.cross_entropy(outputs, targets["deep"][0]) + targets["zero"].mean()


RECORDS = {"x": X, "label": Y}
PLACES = {
    "a dictionary as one argument": (ByBatch, "cross_entropy", RECORDS),
    "a dictionary to model and loss": (ByBatch, own, RECORDS),
    "a data set of dictionaries": (
        ByBatch,
        "cross_entropy",
        [{"x": x, "label": y} for x, y in zip(X, Y, strict=True)],
    ),
    "its own loss": (Gives, "model", RECORDS),
    "two inputs": (BySeveral, "cross_entropy", (X[:, :1], X[:, 1:], Y)),
    "two inputs in a tuple": (
        BySeveral,
        "cross_entropy",
        [((x[:1], x[1:]), y) for x, y in zip(X, Y, strict=True)],
    ),
    "a tuple as one argument": (
        ByPair,
        "cross_entropy",
        [((x[:1], x[1:]), y) for x, y in zip(X, Y, strict=True)],
    ),
    "a dictionary and a label": (
        ByBatch,
        "cross_entropy",
        [({"x": x}, y) for x, y in zip(X, Y, strict=True)],
    ),
    "nested targets": (
        net,
        nested,
        [(x, {"deep": (y, 1), "zero": torch.zeros(())}) for x, y in zip(X, Y, strict=True)],
    ),
    "numbers beside the targets": (
        net,
        lambda outputs, targets: F.cross_entropy(outputs, targets[0]),
        TensorDataset(X, Y, torch.arange(N)),
    ),
    "texts beside the targets": (
        net,
        "cross_entropy",
        [(x, y, f"sample {n}") for n, (x, y) in enumerate(zip(X, Y, strict=True))],
    ),
    "a loss of three": (
        net,
        lambda outputs, targets, factor: per_sample(outputs, targets) * factor,
        TensorDataset(X, Y, torch.ones(N)),
    ),
    "a loss by names": (
        ByBatch,
        lambda outputs, label, x: per_sample(outputs, label) + 0 * x.sum(1),
        RECORDS,
    ),
}


@pytest.mark.parametrize(("model", "loss", "data"), PLACES.values(), ids=PLACES.keys())
def test_model_and_loss_get_what_they_take(model, loss, data):
    expected = F.cross_entropy(net()(X), Y)
    slope = torch.autograd.grad(
        expected, list((reference := net()).parameters()), allow_unused=True
    )
    assert all(part is None for part in slope)  # of another copy
    expected = F.cross_entropy(reference(X), Y)
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(expected, reference.parameters())])
    for size in (1, 4, N):
        objective = Objective(model(), loss, data, chunk_size=size)
        assert objective.loss() == pytest.approx(float(expected.detach()), rel=1e-12)
        torch.testing.assert_close(objective.gradient(), slope, rtol=1e-9, atol=1e-11)


class Attributes(UserDict):
    """A dictionary whose entries are attributes, as those of tokenizers."""

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError as error:
            raise AttributeError(name) from error


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    label: torch.Tensor


Named = namedtuple("Named", "x y")  # pyright: ignore


def attributed(items):
    return Attributes(
        x=torch.stack([x for x, _ in items]), label=torch.stack([y for _, y in items])
    )


def recorded(items):
    return Record(torch.stack([x for x, _ in items]), torch.stack([y for _, y in items]))


def spaced(items):
    return SimpleNamespace(
        x=torch.stack([x for x, _ in items]), y=torch.stack([y for _, y in items]), text="a"
    )


@pytest.mark.parametrize("collate", [attributed, recorded, spaced])
@pytest.mark.parametrize("shuffle", [False, True])
def test_objects_are_given_whole(collate, shuffle):
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=collate, shuffle=shuffle)
    objective = Objective(ByAttribute(), "cross_entropy", loader)
    expected = float(F.cross_entropy(net()(X), Y).detach())
    assert objective.num_samples == N
    assert objective.loss() == pytest.approx(expected, rel=1e-12)
    assert objective.accuracy() == float((net()(X).argmax(1) == Y).double().mean())


def test_a_named_tuple_stays_one():
    class ByName(Takes):
        def forward(self, pair):
            return self.net(torch.cat([pair.x, pair.y], 1))

    data = [(Named(x[:1], x[1:]), y) for x, y in zip(X, Y, strict=True)]
    found = Objective(ByName(), "cross_entropy", data, chunk_size=3)
    assert found.loss() == pytest.approx(float(F.cross_entropy(net()(X), Y).detach()), rel=1e-12)


# Weights of samples.

weighted = pytest.mark.parametrize("key", ["weight", "sample_weights"])


@weighted
@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(), per_sample])
def test_an_entry_of_weights_weights_the_samples(key, loss):
    data = {"x": X, "label": Y, key: W}
    for model in (ByBatch(), ByBatch()):
        for size in (1, 4, N):
            objective = Objective(model, loss, data, chunk_size=size)
            expected = (W * per_sample(net()(X), Y)).sum() / W.sum()
            assert objective.loss() == pytest.approx(float(expected.detach()), rel=1e-12)
            assert "weights of the batch" in objective.describe()["mean_over"]
    assert objective.accuracy() == float((net()(X).argmax(1) == Y).double().mean())


def test_the_curvature_is_that_of_the_weighted_mean():
    objective = Objective(
        nn.Linear(4, 3).double(), "cross_entropy", {"input": X, "label": Y, "weight": W}
    )

    def mean(theta):
        outputs = F.linear(X, theta[:12].view(3, 4), theta[12:])
        return (W * per_sample(outputs, Y)).sum() / W.sum()

    expected = torch.autograd.functional.hessian(mean, objective.theta)
    hessian = HessianOperator(objective)
    found = torch.stack([hessian @ unit for unit in torch.eye(15, dtype=torch.float64)])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", ["cross_entropy", lambda o, label, weight: per_sample(o, label)])
def test_samples_that_were_taken_can_be_taken_again(loss):
    data = {"x": X, "label": Y[:, None].int() if isinstance(loss, str) else Y, "weight": W}
    first = Objective(ByBatch(), loss, data)
    for again in (loss, first.loss_function):
        second = Objective(ByBatch(), again, first.samples, chunk_size=3)
        assert second.loss() == pytest.approx(first.loss(), rel=1e-12)
        assert second.describe()["indices"] == first.describe()["indices"]


def test_a_loss_that_takes_weights_gets_them_instead():
    def mean(outputs, label, weight):
        return per_sample(outputs, label) * weight * N / W.sum()

    data = {"x": X, "label": Y, "weight": W}
    expected = float(((W * per_sample(net()(X), Y)).sum() / W.sum()).detach())
    assert Objective(ByBatch(), mean, data).loss() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("weights", "loss", "words"),
    [
        (W, nn.MSELoss(), "one value per sample"),
        (-W, "cross_entropy", "finite, >= 0"),
        (0 * W, "cross_entropy", "not all 0"),
        (X, "cross_entropy", "one a sample"),
    ],
)
def test_weights_that_cannot_be_taken_are_refused(weights, loss, words):
    targets = F.one_hot(Y).double() if isinstance(loss, nn.MSELoss) else Y
    with pytest.raises(InvalidArgumentError, match=words):
        Objective(ByBatch(), loss, {"x": X, "label": targets, "weight": weights})


def test_samples_of_weight_zero_are_left_out():
    weights = W.clone()
    weights[[2, 5]] = 0
    objective = Objective(ByBatch(), "cross_entropy", {"x": X, "label": Y, "weight": weights})
    assert objective.num_samples == N - 2 and 5 not in objective.indices.tolist()


# Batches that cannot be cut.


class Graph:
    """A graph, or several as one, in the manner of PyTorch Geometric."""

    def __init__(self, nodes, edges, batch, y):
        self.nodes, self.edges, self.batch, self.y = nodes, edges, batch, y
        self.store = {"nodes": nodes}

    @property
    def num_graphs(self):
        return len(self.y)


def graphs(number=N):
    generator = torch.Generator().manual_seed(3)
    found = []
    for n in range(number):
        size = 2 + n % 4
        nodes = torch.randn(size, 4, generator=generator, dtype=torch.float64)
        edges = torch.randint(0, size, (2, 2 * size), generator=generator)
        found.append(Graph(nodes, edges, torch.zeros(size).long(), torch.tensor([n % 3])))
    return found


def joined(items):
    offsets = [sum(len(g.nodes) for g in items[:n]) for n in range(len(items))]
    return Graph(
        torch.cat([g.nodes for g in items]),
        torch.cat([g.edges + offset for g, offset in zip(items, offsets, strict=True)], 1),
        torch.cat([g.batch + n for n, g in enumerate(items)]),
        torch.cat([g.y for g in items]),
    )


class GraphNet(Takes):
    def forward(self, data):
        sent = torch.zeros_like(data.nodes).index_add(0, data.edges[1], data.nodes[data.edges[0]])
        sums = data.nodes.new_zeros(data.num_graphs, 4).index_add(0, data.batch, sent)
        return self.net(sums)


def graph_loss(model, items):
    return F.cross_entropy(model(joined(items)), torch.cat([g.y for g in items]))


GRAPH_DATA = {
    "a loader": lambda: DataLoader(graphs(), batch_size=4, collate_fn=joined),
    "a shuffled loader": lambda: DataLoader(
        graphs(), batch_size=4, collate_fn=joined, shuffle=True
    ),
    "one by one": lambda: DataLoader(graphs(), batch_size=1, collate_fn=joined),
    "a data set": graphs,
    "a loader of its own way": lambda: OwnLoader(graphs(), batch_size=4, collate_fn=joined),
    "workers that stay": lambda: DataLoader(GraphStream(), batch_size=4, collate_fn=joined),
}


class OwnLoader(DataLoader):
    def __iter__(self):
        return iter([joined(graphs()[:7]), joined(graphs()[7:])])


class GraphStream(IterableDataset):
    def __iter__(self):
        return iter(graphs())


@pytest.mark.parametrize("data", GRAPH_DATA.values(), ids=GRAPH_DATA.keys())
@pytest.mark.parametrize(
    "loss", ["cross_entropy", nn.CrossEntropyLoss(), F.cross_entropy, per_sample]
)
def test_graphs_are_measured_batch_by_batch_each_with_its_count(data, loss):
    model = GraphNet()
    expected = graph_loss(model, graphs())
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(expected, model.parameters())])
    objective = Objective(model, loss, data())
    assert objective.num_samples == N and objective.describe()["samples"] == N
    assert objective.loss() == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(objective.gradient(), slope, rtol=1e-9, atol=1e-11)
    labels = torch.cat([g.y for g in graphs()])
    right = (model(joined(graphs())).argmax(1) == labels).double().mean()
    assert objective.accuracy() == float(right)


def test_the_curvature_of_graphs_is_that_of_the_dense_matrix():
    class Small(Takes):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(4, 3).double()

        forward = GraphNet.forward

    items, loader = graphs(), DataLoader(graphs(), batch_size=4, collate_fn=joined)
    objective = Objective(Small(), "cross_entropy", loader)
    whole = joined(items)
    sent = torch.zeros_like(whole.nodes).index_add(0, whole.edges[1], whole.nodes[whole.edges[0]])
    sums = torch.zeros(N, 4).double().index_add(0, whole.batch, sent)

    def mean(theta):
        return F.cross_entropy(F.linear(sums, theta[:12].view(3, 4), theta[12:]), whole.y)

    expected = torch.autograd.functional.hessian(mean, objective.theta)
    for engine in ("auto", "double_backward"):
        hessian = HessianOperator(objective, engine=engine)
        found = torch.stack([hessian @ unit for unit in torch.eye(15, dtype=torch.float64)])
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_a_report_of_graphs_says_that_they_are_batches():
    loader = DataLoader(graphs(), batch_size=4, collate_fn=joined)
    report = flatkit.analyze(
        GraphNet(),
        "cross_entropy",
        loader,
        measures=["loss", "accuracy", "top_eigenvalues", "trace"],
    )
    assert report.objective["batches"] == 3 and report.objective["samples"] == N
    assert "batch by batch" in report.objective["mean_over"] or report.objective["mean_over"]
    objective = Objective(GraphNet(), "cross_entropy", loader)
    with pytest.raises(InvalidArgumentError, match="cannot be cut"):
        m_sharpness(objective, rho=0.1, m=2, generator=torch.Generator())
    direction = torch.ones(1, objective.num_parameters).double()
    moved = evaluator(objective, objective.theta, direction, quantities=("loss", "accuracy"))
    found = moved.values([[0.1]])[0]
    assert found["loss"] == pytest.approx(objective.loss(objective.theta + 0.1), rel=1e-12)
    assert found["accuracy"] == objective.accuracy(objective.theta + 0.1)


def summed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum")


def over_the_batch(outputs, targets):
    return F.cross_entropy(outputs - outputs.mean(0), targets)


@pytest.mark.parametrize("loss", [summed, nn.CrossEntropyLoss(reduction="sum")])
def test_a_sum_over_graphs_is_refused(loss):
    loader = DataLoader(graphs(), batch_size=4, collate_fn=joined)
    with pytest.raises(NonAdditiveLossError, match="a sum"):
        Objective(GraphNet(), loss, loader)


def test_a_loss_of_the_batch_is_measured_by_fixed_batches_alone():
    loader = DataLoader(graphs(), batch_size=4, collate_fn=joined)
    model, parts = GraphNet(), [graphs()[n : n + 4] for n in (0, 4, 8)]
    expected = sum(
        len(part) * float(over_the_batch(model(joined(part)), joined(part).y).detach())
        for part in parts
    )
    objective = Objective(model, over_the_batch, loader)
    assert objective.loss() == pytest.approx(expected / N, rel=1e-12)
    mixed = DataLoader(graphs(), batch_size=4, collate_fn=joined, shuffle=True)
    with pytest.raises(NonAdditiveLossError, match="mixes its batches anew"):
        Objective(model, over_the_batch, mixed)


def test_some_graphs_are_drawn_and_said():
    loader = DataLoader(graphs(), batch_size=4, collate_fn=joined, shuffle=True)
    objective = Objective(GraphNet(), "cross_entropy", loader, samples=6, seed=1)
    rows = objective.indices.tolist()
    expected = graph_loss(GraphNet(), [graphs()[row] for row in rows])
    assert len(rows) == 6 and objective.loss() == pytest.approx(float(expected.detach()), rel=1e-12)


def twice(items):
    return [Graph(2 * g.nodes, g.edges, g.batch, g.y) for g in items]


def test_a_tuple_of_a_graph_and_a_label_is_no_label_alone():
    items = [(graph, graph.y[0]) for graph in graphs()]

    def pairs(some):
        return joined([graph for graph, _ in some]), torch.stack([y for _, y in some])

    loader = DataLoader(items, batch_size=4, collate_fn=pairs)
    expected = float(graph_loss(GraphNet(), graphs()).detach())
    found = Objective(GraphNet(), "cross_entropy", loader)
    assert found.loss() == pytest.approx(expected, rel=1e-12)


def test_a_batch_with_a_lock_is_refused_by_name():
    def locked(items):
        return SimpleNamespace(x=torch.stack([x for x, _ in items]), lock=threading.Lock())

    loader = DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=locked)
    with pytest.raises(InvalidArgumentError, match="SimpleNamespace that cannot be copied"):
        Objective(ByAttribute(), "cross_entropy", loader)


def test_graphs_that_a_loss_refuses_are_not_read_again():
    def read(items):
        reads.append(len(items))
        return joined(items)

    reads: list[int] = []
    loader = DataLoader(graphs(), batch_size=4, collate_fn=read)
    Objective(GraphNet(), "cross_entropy", loader)
    enough = len(reads)
    reads.clear()
    with pytest.raises(UserCodeError, match="no attribute 'wrong'"):
        Objective(GraphNet(), lambda outputs, batch: batch.wrong, loader)
    assert 0 < len(reads) <= enough


def test_data_of_graphs_stay_as_they_are():
    items = graphs()
    before = copy.deepcopy([vars(item) for item in items])

    class Writes(GraphNet):
        def forward(self, data):
            data.nodes.mul_(2)
            data.seen = True
            return super().forward(data)

    expected = [graph_loss(GraphNet(), [item]) for item in twice(items)]
    found = Objective(Writes(), "cross_entropy", items).loss()
    assert found == pytest.approx(float(sum(expected).detach()) / N, rel=1e-12)
    for item, old in zip(items, before, strict=True):
        assert "seen" not in vars(item) and torch.equal(item.nodes, old["nodes"])


class Detector(nn.Module):
    """Takes a list of images of several sizes and a list of boxes, returns its losses by image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3).double(), nn.Linear(4, 4).double()

    def forward(self, images, targets=None):
        assert isinstance(images, list)
        return [self.head(self.conv(image[None]).mean((2, 3)))[0] for image in images]


class Boxes(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, 5 + index, 6, generator=generator, dtype=torch.float64)
        boxes = torch.rand(index % 3 + 1, 4, generator=generator, dtype=torch.float64)
        return image, {"boxes": boxes, "labels": torch.ones(len(boxes)).long(), "name": str(index)}


def as_lists(items):
    return [list(column) for column in zip(*items, strict=True)]


def box_loss(outputs, targets):
    return torch.stack(
        [(out - t["boxes"]).square().mean() for out, t in zip(outputs, targets, strict=True)]
    )


@pytest.mark.parametrize("loss", [box_loss, lambda o, t: box_loss(o, t).mean()])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ragged_boxes_are_measured(loss, size):
    loader = DataLoader(Boxes(), batch_size=size, collate_fn=as_lists)
    model, items = Detector(), [Boxes()[n] for n in range(5)]
    expected = box_loss(model([image for image, _ in items]), [t for _, t in items]).mean()
    objective = Objective(model, loss, loader)
    assert objective.num_samples == 5
    assert objective.loss() == pytest.approx(float(expected.detach()), rel=1e-12)


def test_packed_sequences_are_measured():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.GRU(4, 5).double(), nn.Linear(5, 3).double()

        def forward(self, packed):
            return self.head(self.rnn(packed)[1][0])

    lengths = [5, 5, 4, 3, 3, 2, 1]
    items = [(torch.randn(n, 4).double(), torch.tensor(n % 3)) for n in lengths]

    def packed(some):
        return pack_sequence([x for x, _ in some]), torch.stack([y for _, y in some])

    model = Reader()
    for size in (1, 3, 7):
        loader = DataLoader(items, batch_size=size, collate_fn=packed)
        inputs, targets = packed(items)
        expected = float(F.cross_entropy(model(inputs), targets).detach())
        objective = Objective(model, "cross_entropy", loader)
        assert objective.num_samples == 7
        assert objective.loss() == pytest.approx(expected, rel=1e-12)


def test_time_first_sequences_are_measured():
    """A batch [T, B, C] has the samples second, also where T and B are equal by chance."""

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.GRU(4, 5).double(), nn.Linear(5, 3).double()

        def forward(self, x):
            return self.head(self.rnn(x)[1][0])

    items = [(torch.randn(4, 4).double(), torch.tensor(n % 3)) for n in range(8)]

    def second(some):
        return torch.stack([x for x, _ in some], 1), torch.stack([y for _, y in some])

    model = Reader()
    inputs, targets = second(items)
    expected = float(F.cross_entropy(model(inputs), targets).detach())
    objective = Objective(
        model, "cross_entropy", DataLoader(items, batch_size=4, collate_fn=second)
    )
    assert objective.loss() == pytest.approx(expected, rel=1e-12)


def test_a_loader_of_ready_batches_is_joined():
    class Ready(IterableDataset):
        def __iter__(self):
            return iter([(X[:4], Y[:4]), (X[4:], Y[4:])])

    objective = Objective(net(), "cross_entropy", DataLoader(Ready(), batch_size=None))
    assert objective.num_samples == N
    expected = float(F.cross_entropy(net()(X), Y).detach())
    assert objective.loss() == pytest.approx(expected, rel=1e-12)


def test_two_views_of_a_sample_are_a_batch_of_samples():
    def views(items):
        x = torch.stack([x for x, _ in items])
        return torch.cat([x, -x]), torch.stack([y for _, y in items])

    def mean(outputs, targets):
        first, second = outputs.chunk(2)
        return (first - second).square().mean(1) + 0 * targets

    loader = DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=views)
    expected = float((net()(X) - net()(-X)).square().mean().detach())
    assert Objective(net(), mean, loader).loss() == pytest.approx(expected, rel=1e-12)


def test_the_first_error_is_told_with_the_users_line():
    def losing(outputs, batch):
        return F.cross_entropy(outputs, batch["labels"])  # there is none of this name

    with pytest.raises(UserCodeError, match=r"test_batches.py, line \d+, losing"):
        Objective(ByBatch(), losing, {"x": X, "kind": Y})


def test_several_targets_of_a_named_loss_are_explained():
    with pytest.raises(InvalidArgumentError, match=r"and a tuple; .* 2 parts are left"):
        Objective(net(), "cross_entropy", (X, Y, Y))
