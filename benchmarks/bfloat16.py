"""Whether the numbers of bfloat16 are right: the float64 truth against the error bars, 100 cases.

    python -m benchmarks.bfloat16 [--cases 100] [--bounds] [--points] [--verdicts] [--write]

A case is a small network (dense, convolutional, attention) of a seed, with a loss, a few steps of
training, and samples that it goes through in chunks. `analyze` measures it with dtype bfloat16. The
truth is that of its float32 weights in float64: loss, accuracy, gradient and the dense Hessian by
`torch.func`, which shares no code with flatkit. What is counted is how often the
truth lies within the bar: the error itself, of what random probes give twice the standard error.

With `--bounds` it is about searches in balls: whether their value is that of the function in
float64 at the point that they name, by `torch.func` again, and how much the same search finds in
float64; m-sharpness beside that. With `--points` about points of a line through the weights: of how
many cases the truth lies within the bars of all. With `--verdicts` about the claims of `verify`,
beside those of float64.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatkit
from benchmarks.timing import save_section
from flatkit.flatness import m_sharpness
from flatkit.landscape.evaluate import evaluator
from flatkit.landscape.settings import Quantity
from flatkit.measures.loss_slice import ExtentSettings
from flatkit.measures.registry import MEASURES as REGISTERED
from flatkit.measures.shared_settings import BallSettings
from flatkit.verify import verify

MEASURES = tuple(
    name
    for name in REGISTERED
    if REGISTERED[name].in_bfloat16
    and not {BallSettings, ExtentSettings} & {*REGISTERED[name].settings}
)
SEARCHES = {"R0": flatkit.max_loss_increase, "R1": flatkit.max_gradient_norm}
_RHO, _GRADIENTS = 0.1, 60
_BATCH = 6
"""Samples of a batch, for m-sharpness."""
_STEPS = (-1.0, -0.3, 0.0, 0.1, 0.6)
_RESULTS = Path(__file__).parent / "results" / "bfloat16.md"


class Case(NamedTuple):
    """A network, a loss and samples.

    Attributes:
        name: what it is.
        model: in float32.
        loss: by name.
        data: inputs and targets.
        chunk_size: samples that go through at once.
    """

    name: str
    model: nn.Module
    loss: str
    data: tuple[Tensor, Tensor]
    chunk_size: int


class Comparison(NamedTuple):
    """A number beside the truth.

    Attributes:
        measure: what it is.
        value: in bfloat16.
        bar: how wrong it may be.
        truth: in float64.
        products: that it took.
    """

    measure: str
    value: float
    bar: float
    truth: float
    products: int

    @property
    def bars(self) -> float:
        """How many bars it is off."""
        off = abs(self.value - self.truth)
        return off / self.bar if self.bar > 0 else (0.0 if off == 0 else float("inf"))


class Attention(nn.Module):
    """A token embedding, one layer of attention, and a head."""

    def __init__(self, tokens: int, width: int, classes: int, *, pooled: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.head = nn.Linear(width, classes)
        self.pooled = pooled

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of classes, of each token or of the sequence."""
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        return self.head(x.mean(1) if self.pooled else x)


def _dense(pick: Any) -> tuple[nn.Module, tuple[int, ...]]:
    width, act = pick(4, 8, 12), pick(nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU)
    layers = [nn.Linear(6, width), act(), *pick([nn.LayerNorm(width)], [])]
    deeper = pick([nn.Linear(width, width), act()], [])
    return nn.Sequential(*layers, *deeper, nn.Linear(width, 4)), (6,)


def _convolutional(pick: Any) -> tuple[nn.Module, tuple[int, ...]]:
    act, channels = pick(nn.Tanh, nn.GELU, nn.Softplus), pick(3, 5)
    normed = pick([nn.BatchNorm2d(channels)], [nn.GroupNorm(1, channels)], [])
    layers = [nn.Conv2d(2, channels, 3, padding=1), *normed, act(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 9, 4)), (2, 6, 6)


def make_case(seed: int) -> Case:
    """Return the case of a seed, the same each time."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    kind, few = ("dense", "convolutional", "attention")[seed % 3], pick(24, 60, 150)
    samples = few if kind == "attention" else pick(1, 4) * few
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "attention":
            pooled = pick(True, False)
            model: nn.Module = Attention(7, 5, 4, pooled=pooled)
            inputs = torch.randint(7, (samples, 6), generator=generator)
            loss = "cross_entropy" if pooled else "token_cross_entropy"
            targets = torch.randint(4, (samples, *(() if pooled else (6,))), generator=generator)
        else:
            model, shape = (_dense if kind == "dense" else _convolutional)(pick)
            inputs = torch.randn(samples, *shape, generator=generator)
            loss = pick("cross_entropy", "mse")
            targets = inputs.flatten(1)[:, :4].sin().argmax(1)
            if loss == "mse":
                targets = inputs.flatten(1)[:, :4].sin()
    steps, chunk = pick(0, 30, 200), pick(16, 64, 1000)
    _train(model, loss, (inputs, targets), steps)
    name = f"{seed}: {kind}, {loss}, {samples} samples, {steps} steps, chunks of {chunk}"
    return Case(name, model.eval(), loss, (inputs, targets), chunk)


def _train(model: nn.Module, loss: str, data: tuple[Tensor, Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        _mean_loss(model(data[0]), data[1], loss).backward()
        optimizer.step()


def _mean_loss(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    if loss == "mse":
        return F.mse_loss(outputs, targets)
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def functions_of(
    case: Case,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
    """Return outputs and loss as functions of the weights [P] in float64, and these."""
    model = {name: p.detach().double() for name, p in case.model.named_parameters()}
    buffers = {
        name: b.double() if b.is_floating_point() else b for name, b in case.model.named_buffers()
    }
    inputs, targets = (t.double() if t.is_floating_point() else t for t in case.data)
    sizes = [p.numel() for p in model.values()]

    def outputs(point: Tensor) -> Tensor:
        pieces = zip(model.items(), point.split(sizes), strict=True)
        parts = {name: piece.view(p.shape) for (name, p), piece in pieces}
        return torch.func.functional_call(case.model, {**parts, **buffers}, (inputs,))

    def loss(point: Tensor) -> Tensor:
        return _mean_loss(outputs(point), targets, case.loss)

    return outputs, loss, torch.cat([p.reshape(-1) for p in model.values()])


def truth_of(case: Case) -> dict[str, list[float]]:
    """Return what is measured, in float64 and by dense matrices."""
    outputs, loss, theta = functions_of(case)
    targets = case.data[1]
    slope = torch.func.grad(loss)
    gradient, hessian = slope(theta), torch.func.jacrev(slope)(theta)
    eigenvalues = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
    found = {
        "loss": [float(loss(theta))],
        "gradient_norm": [float(gradient.norm())],
        "top_eigenvalues": eigenvalues.flip(0)[:2].tolist(),
        "bottom_eigenvalues": eigenvalues[:2].tolist(),
        "trace": [float(eigenvalues.sum())],
        "frobenius_norm": [float(eigenvalues.norm())],
    }
    if case.loss == "cross_entropy":
        found["accuracy"] = [float((outputs(theta).argmax(1) == targets).double().mean())]
    return found


def compare(case: Case, **settings: Any) -> Iterator[Comparison]:
    """Yield every number that bfloat16 gives beside the truth."""
    truth = truth_of(case)
    given: dict[str, Any] = {
        "measures": MEASURES,
        "num_eigenvalues": 2,
        "chunk_size": case.chunk_size,
        "trace_tolerance": 0.05,
        **settings,
    }
    report = flatkit.analyze(
        case.model, case.loss, case.data, dtype="bfloat16", progress=False, **given
    )
    for result in report.results:
        if result.measure not in truth:
            continue
        many = isinstance(result.value, list)
        values, errors = (x if many else [x] for x in (result.value, result.error))
        factor = 2.0 if result.error_kind == "standard_error" else 1.0
        for value, error, true in zip(values, errors, truth[result.measure], strict=True):
            yield Comparison(result.measure, value, factor * error, true, result.cost.matvecs)


def objective_of(case: Case, dtype: torch.dtype) -> flatkit.Objective:
    """Return L of a case in a dtype."""
    return flatkit.Objective(
        case.model, case.loss, case.data, dtype=dtype, chunk_size=case.chunk_size
    )


class Bound(NamedTuple):
    """What a search in a ball found.

    Attributes:
        quantity: R0, or R1.
        value: that it states.
        there: what the function has in float64 at the point that it names.
        length: of the way to that point, in radii.
        wide: what the same search finds in float64.
    """

    quantity: str
    value: float
    there: float
    length: float
    wide: float


def bounds(case: Case) -> Iterator[Bound]:
    """Yield what searches in bfloat16 find, beside the truth at their points."""
    _, loss, theta = functions_of(case)
    slope = torch.func.grad(loss)
    for quantity, search in SEARCHES.items():
        narrow, wide = (
            search(
                objective_of(case, dtype),
                rho=_RHO,
                budget=_GRADIENTS,
                generator=torch.Generator().manual_seed(0),
            )
            for dtype in (torch.bfloat16, torch.float64)
        )
        way = narrow.displacement.double()
        gain = loss(theta + way) - loss(theta)
        there = float(gain) if quantity == "R0" else float(slope(theta + way).norm())
        yield Bound(quantity, narrow.value, there, float(way.norm()) / _RHO, wide.value)


def of_batches(case: Case) -> float:
    """Return m-sharpness in bfloat16 over that of float64."""
    narrow, wide = (
        m_sharpness(
            flatkit.Objective(case.model, case.loss, case.data, dtype=dtype),
            rho=_RHO,
            m=_BATCH,
            generator=torch.Generator().manual_seed(0),
        ).value
        for dtype in (torch.bfloat16, torch.float64)
    )
    return narrow / wide


def count_bounds(seeds: Iterable[int]) -> list[str]:
    """Return the table of searches in balls."""
    found, shares = defaultdict[str, list[Bound]](list), list[float]()
    for seed in seeds:
        case = make_case(seed)
        shares.append(of_batches(case))
        for one in bounds(case):
            found[one.quantity].append(one)
    lines = [
        f"A ball of radius {_RHO}, {_GRADIENTS} gradients.",
        "",
        "| search | cases | off the float64 value at its point (most) | of what float64 finds "
        "(median) | (least) |",
        "|---|--:|--:|--:|--:|",
    ]
    for quantity, ones in found.items():
        off = max(abs(one.value - one.there) / max(one.there, 1e-12) for one in ones)
        share = torch.tensor([one.value / max(one.wide, 1e-12) for one in ones])
        lines.append(
            f"| {quantity} | {len(ones)} | {off:.1e} | {share.median():.4f} | {share.min():.4f} |"
        )
    share = torch.tensor(shares)
    lines.append(f"| m-sharpness | {len(share)} | | {share.median():.4f} | {share.min():.4f} |")
    return lines


class Point(NamedTuple):
    """A number at a point of a line.

    Attributes:
        quantity: what it is.
        bars: how many bars it is off.
        bar: relative to the truth.
    """

    quantity: str
    bars: float
    bar: float


def points(case: Case) -> Iterator[Point]:
    """Yield every number at points of a random line as long as the weights, beside the truth."""
    outputs, loss, theta = functions_of(case)
    slope = torch.func.grad(loss)
    objective = objective_of(case, torch.bfloat16)
    drawn = torch.randn(len(theta), generator=torch.Generator().manual_seed(0))
    line = (drawn * (objective.theta.norm() / drawn.norm()))[None]
    truths: dict[Quantity, Callable[[Tensor], Tensor]] = {
        "loss": loss,
        "gradient_norm": lambda place: slope(place).norm(),
    }
    if case.loss == "cross_entropy":
        truths["accuracy"] = lambda place: (
            (outputs(place).argmax(1) == case.data[1]).double().mean()
        )
    found = evaluator(objective, objective.theta, line, quantities=tuple(truths))
    for step, values in zip(_STEPS, found.values([[step] for step in _STEPS]), strict=True):
        place = theta + step * line[0].double()
        for quantity, function in truths.items():
            true, bar = float(function(place)), values[f"{quantity}_rounding"]
            yield Point(quantity, abs(values[quantity] - true) / bar, bar / max(abs(true), 1e-12))


def count_points(seeds: Iterable[int]) -> list[str]:
    """Return the table of points of lines."""
    found = defaultdict[str, list[list[Point]]](list)
    for seed in seeds:
        case = make_case(seed)
        ones = list(points(case))
        for quantity in dict.fromkeys(one.quantity for one in ones):
            found[quantity].append([one for one in ones if one.quantity == quantity])
        for one in ones:
            if one.bars > 1:
                print(f"{case.name}: {one.quantity} {one.bars:.2f} bars off")
    lines = [
        f"A line through the weights, as long as they are to each side, at {len(_STEPS)} steps.",
        "",
        "| quantity | points | within the bar | cases | with all points within | most bars | "
        "bar, relative (median) |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for quantity, cases in found.items():
        ones = [one for case in cases for one in case]
        within = sum(one.bars <= 1 for one in ones)
        whole = sum(all(one.bars <= 1 for one in case) for case in cases)
        lines.append(
            f"| {quantity} | {len(ones)} | {within} | {len(cases)} | {whole} | "
            f"{max(one.bars for one in ones):.2f} | "
            f"{torch.tensor([one.bar for one in ones]).median():.1e} |"
        )
    return lines


def verified(case: Case, **settings: Any) -> tuple[flatkit.Report, flatkit.Report]:
    """Return what `verify` reports in float64, and in bfloat16."""
    task, given = flatkit.Task(case.model, case.loss, case.data), dict[str, Any](settings)
    given["chunk_size"] = case.chunk_size
    return verify(task, dtype="float64", **given), verify(task, dtype="bfloat16", **given)


def count_verdicts(seeds: Iterable[int]) -> list[str]:
    """Return the table of claims: as float64 judges them, and as bfloat16 does."""
    found = defaultdict[tuple[str, str], int](int)
    for seed in seeds:
        case = make_case(seed)
        wide, narrow = verified(case, search_budget=_GRADIENTS)
        claims = (report.result("verdict").value for report in (wide, narrow))
        for true, own in zip(*claims, strict=True):
            found[true["verdict"], own["verdict"]] += 1
            if {true["verdict"], own["verdict"]} == {"holds", "fails"}:
                print(f"{case.name}: {own['claim']} {own['verdict']}: {own['reason']}")
    words = "holds", "fails", "cannot tell"
    lines = [
        "Claims of `verify`, a row for each verdict of float64, a column for each of bfloat16.",
        "",
        f"| float64 | {' | '.join(words)} |",
        "|---|--:|--:|--:|",
    ]
    return lines + [
        f"| {true} | {' | '.join(str(found[true, own]) for own in words)} |" for true in words
    ]


def main() -> None:
    """Count, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--bounds", action="store_true", help="of searches in balls")
    parser.add_argument("--points", action="store_true", help="of lines")
    parser.add_argument("--verdicts", action="store_true", help="of verify")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    for name, (title, count) in _SECTIONS.items():
        if not getattr(args, name):
            continue
        lines = count(range(args.first, args.first + args.cases))
        print("\n".join(lines))
        if args.write:
            command = f"python -m benchmarks.bfloat16 --{name} --cases {args.cases} --write"
            save_section("bfloat16", "", title, command, lines)
        return
    started, found = time.perf_counter(), defaultdict[str, list[Comparison]](list)
    for seed in range(args.first, args.first + args.cases):
        case = make_case(seed)
        for one in compare(case):
            found[one.measure].append(one)
            if one.bars > 1:
                print(
                    f"{case.name}: {one.measure} {one.value:.6g}, truth {one.truth:.6g}, "
                    f"bar {one.bar:.2g}: {one.bars:.2f} bars"
                )
    lines = [
        "| measure | numbers | within the bar | most bars | bar, relative (median) | "
        "off, relative (median) | products (median) |",
        "|---|---|---|---|---|---|---|",
    ]
    for measure in MEASURES:
        ones = found[measure]
        within = sum(one.bars <= 1 for one in ones) / len(ones)
        wide, off = (
            torch.tensor(each).median()
            for each in (
                [one.bar / max(abs(one.truth), 1e-12) for one in ones],
                [abs(one.value - one.truth) / max(abs(one.truth), 1e-12) for one in ones],
            )
        )
        products = torch.tensor([float(one.products) for one in ones]).median()
        lines.append(
            f"| {measure} | {len(ones)} | {within:.1%} | {max(o.bars for o in ones):.2f} | "
            f"{wide:.1e} | {off:.1e} | {products:.0f} |"
        )
    table = "\n".join(lines)
    print(table, f"\n{time.perf_counter() - started:.0f} s")
    if args.write:
        _, *rest = _RESULTS.read_text("utf-8").split("\n## ")
        whole = [_TEXT.format(cases=args.cases, table=table), *rest]
        _RESULTS.write_text("\n## ".join(whole), "utf-8")


_SECTIONS: dict[str, tuple[str, Callable[[Iterable[int]], list[str]]]] = {
    "bounds": ("Searches in balls", count_bounds),
    "points": ("Points of lines", count_points),
    "verdicts": ("Verdicts", count_verdicts),
}
"""Heading of each section, and what counts it."""

_TEXT = """# bfloat16: the truth against the bars

`python -m benchmarks.bfloat16 --write`: {cases} seeded cases (dense, convolutional and attention
networks; cross-entropy, of tokens too, and squared error; 24 to 600 samples; none to 200 steps of
training; chunks of 16 to 1000), measured with dtype bfloat16. The truth is that of the float32
weights in float64, by dense matrices. The bar of what random probes give is twice the standard
error.

{table}
"""

if __name__ == "__main__":
    main()
