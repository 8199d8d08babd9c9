"""`flatkit info`: what a checkpoint is, without running anything in it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from flatkit.checkpoints import Checkpoint


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(checkpoint: Path, as_json: bool) -> None:
    """Say what a CHECKPOINT holds: model, data, training, epoch and tensors.

    Nothing in the file is executed, and no data are needed.
    """
    from flatkit.checkpoints import load

    facts = describe(load(checkpoint))
    click.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else as_text(facts))


def describe(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return what `flatkit info --json` prints.

    `parameters` counts the trainable numbers, `problem` says why the model cannot be rebuilt;
    one of them is None.
    """
    non_finite = checkpoint.non_finite()
    tensors = [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "non_finite": non_finite.get(name, 0),
        }
        for name, tensor in checkpoint.state_dict.items()
    ]
    parameters, problem = _count_parameters(checkpoint)
    return {
        **checkpoint.describe(),
        "parameters": parameters,
        "problem": problem,
        "tensors": tensors,
        "last_row": dict(checkpoint.history[-1]) if checkpoint.history else None,
    }


def as_text(facts: Mapping[str, Any]) -> str:
    """Return the facts for a reader: one a line, then the tensors as a table."""
    count = facts["parameters"]
    rows = [
        ("file", facts["path"]),
        ("sha256", facts["sha256"]),
        ("format", f"{facts['format']}, written by flatkit {facts['flatkit']}"),
        ("model", _call(facts["model"])),
        ("parameters", f"{count:,}" if count is not None else f"unknown: {facts['problem']}"),
        ("loss", _call(facts["loss"])),
        ("data", _call(facts["data"])),
        ("data sha256", facts["data"]["sha256"]),
        ("epoch", str(facts["epoch"])),
        ("training", _pairs(facts["training"])),
        ("last epoch", _pairs(facts["last_row"] or {})),
    ]
    table = [("tensor", "shape", "dtype", "NaN or inf")]
    table += [
        (tensor["name"], _shape(tensor["shape"]), tensor["dtype"], str(tensor["non_finite"] or "-"))
        for tensor in facts["tensors"]
    ]
    return "\n".join([*_aligned(rows), "", *_aligned(table)])


def _count_parameters(checkpoint: "Checkpoint") -> tuple[int | None, str | None]:
    from flatkit.errors import CheckpointError

    try:
        model = checkpoint.build_model()
    except CheckpointError as error:
        return None, str(error)
    return sum(parameter.numel() for parameter in model.parameters()), None


def _call(spec: Mapping[str, Any]) -> str:
    from flatkit.registry import call_text

    return call_text(spec["name"], spec["kwargs"])


def _pairs(values: Mapping[str, Any]) -> str:
    texts = (
        f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )
    return ", ".join(texts) or "-"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
