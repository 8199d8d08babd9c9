"""`flatkit info`: what a checkpoint is, without running anything in it."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatkit.results.schema import encode, json_text
from flatkit_cli.options import Command
from flatkit_cli.spelling import json_here

if TYPE_CHECKING:
    from flatkit.checkpoints import Checkpoint


@click.command(
    cls=Command,
    short_help="say what a checkpoint file is and holds",
    help="""Say what a CHECKPOINT is and holds, whatever program wrote it: tensors, types, NaNs.

It is recognised by its content. Nothing in it is executed, no data are needed, and tensors are
read in blocks, so that memory stays small.

\b
flatkit info runs/gam/ckpt.pt
flatkit info weights.safetensors --json
""",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--entry", metavar="NAME", help="The part that holds the weights, e.g. ema.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(checkpoint: Path, entry: str | None, as_json: bool) -> None:
    """Say it; the help text is that of the command."""
    from flatkit.checkpoints.inspection import inspect
    from flatkit_cli.subject import refuse_report

    refuse_report(checkpoint)
    facts = inspect(checkpoint, entry=entry)
    # Of its own files flatkit knows more: it builds the model and counts what is trained.
    if facts["format"].startswith("flatkit "):
        from flatkit.checkpoints import load

        facts = describe(load(checkpoint))
        text = as_text(facts)
    else:
        text = foreign_text(facts)
    click.echo(_as_json(facts) if as_json else text)


def _as_json(facts: Mapping[str, Any]) -> str:
    """Return facts as JSON. A best loss may be infinite or NaN, which JSON has no numbers for."""

    def held(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: held(item) for key, item in value.items()}  # pyright: ignore
        if isinstance(value, list | tuple):
            return [held(item) for item in value]  # pyright: ignore
        return "NaN" if isinstance(value, float) and math.isnan(value) else encode(value)

    return json_here(json_text(held(facts)))


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


def foreign_text(facts: Mapping[str, Any]) -> str:
    """Return the facts of a file that flatkit did not write, for a reader."""
    tensors = facts["tensors"]
    dtypes = Counter(tensor["dtype"] for tensor in tensors)
    kinds = ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.items())
    rows = [
        ("file", facts["path"]),
        ("sha256", facts["sha256"]),
        ("format", facts["format"]),
        ("size", f"{facts['bytes']:,} bytes"),
        ("weights", facts["entry"] or "the whole of it"),
        ("other weights", ", ".join(facts["other_entries"]) or "-"),
        ("tensors", f"{len(tensors):,}: {kinds}; {facts['numbers']:,} numbers"),
        ("NaN or inf", str(facts["non_finite"] or "none")),
        *[("not read", f"{name}: {what}") for name, what in facts["unread"].items()],
        ("beside them", _pairs({**facts["metadata"], **facts["beside"]})),
        ("to analyze it", _needs(facts)),
    ]
    return "\n".join([*_aligned(rows), "", *_aligned(_tensor_table(tensors))])


def _needs(facts: Mapping[str, Any]) -> str:
    """Return what is still needed, as a command."""
    wrong = (
        "weights that are NaN or infinite are refused: use an earlier checkpoint (a mask of "
        "infinite values is none); then "
    )
    return (wrong if facts["non_finite"] else "") + (
        f"flatkit analyze {shlex.quote(facts['path'])} --task my_task.py:build, where build() "
        "returns flatkit.Task(model, loss, data); or --model, --loss and --data by name"
    )


def _tensor_table(tensors: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    return [
        ("tensor", "shape", "dtype", "NaN or inf"),
        *(
            (t["name"], _shape(t["shape"]), t["dtype"], str(t["non_finite"] or "-"))
            for t in tensors
        ),
    ]


def as_text(facts: Mapping[str, Any]) -> str:
    """Return the facts of flatkit's own file for a reader: one a line, then the tensors."""
    rows = [
        ("file", facts["path"]),
        ("sha256", facts["sha256"]),
        ("format", f"{facts['format']}, written by flatkit {facts['flatkit']}"),
        *_origin(facts),
        ("epoch", str(facts["epoch"])),
        ("training", _pairs(facts["training"])),
        ("last epoch", _pairs(facts["last_row"] or {})),
    ]
    return "\n".join([*_aligned(rows), "", *_aligned(_tensor_table(facts["tensors"]))])


def _origin(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what made model, loss and data: names in registries, or a task file."""
    if task_file := facts.get("task_file"):
        return [
            ("task", task_file["function"]),
            ("its file's sha256", task_file["sha256"]),
            ("data sha256", task_file["data_sha256"]),
        ]
    count = facts["parameters"]
    return [
        ("model", _call(facts["model"])),
        ("parameters", f"{count:,}" if count is not None else f"unknown: {facts['problem']}"),
        ("loss", _call(facts["loss"])),
        ("data", _call(facts["data"])),
        ("data sha256", facts["data"]["sha256"]),
    ]


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
        # A note of several lines would break the table.
        f"{key} {value:.6g}" if isinstance(value, float) else " ".join(f"{key} {value}".split())
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
