"""Texts as samples of a causal language model: blocks of tokens, or a line each."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from flatkit.errors import DataError

Encode: TypeAlias = Callable[[Sequence[str]], Sequence[Sequence[int]]]
"""Texts -> the tokens of each."""
Layout: TypeAlias = Literal["blocks", "lines"]

IGNORED = -100
"""Label of what is not to be predicted, as PyTorch and transformers have it."""


@dataclass(frozen=True)
class Texts:
    """Texts that were read.

    Attributes:
        documents: one a file, or one a line.
        digests: file -> SHA-256 of its bytes.
    """

    documents: Sequence[str]
    digests: dict[str, str]


def read_texts(files: Sequence[str], layout: Layout) -> Texts:
    """Read files of text in UTF-8; empty lines are none.

    Args:
        files: paths.
        layout: `blocks` keeps each file whole, `lines` takes each line that is not empty.

    Raises:
        DataError: a file is not there, no text, or holds nothing.
    """
    documents: list[str] = []
    digests: dict[str, str] = {}
    for name in files:
        try:
            content = Path(name).read_bytes()
            # -sig: the byte order mark that some editors begin with is no text.
            text = content.decode("utf-8-sig")
        except OSError as error:
            raise DataError(f"{name} cannot be read as text: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name} is not text in UTF-8 (byte {error.start:,}); convert it: "
                f"iconv -t UTF-8 {name}"
            ) from error
        if not text.strip():
            raise DataError(f"{name} is empty; texts must hold something to predict")
        digests[name] = hashlib.sha256(content).hexdigest()
        lines = (line for line in text.splitlines() if line.strip())
        documents += [text] if layout == "blocks" else lines
    return Texts(documents, digests)


def in_blocks(documents: Sequence[Sequence[int]], length: int, between: int | None) -> list[Tensor]:
    """Return the tokens of all documents, cut into blocks of a length; the last may be shorter.

    Args:
        documents: the tokens of each.
        length: of a block, at least 2.
        between: token that stands between two documents; None for nothing.

    >>> in_blocks([[1, 2, 3], [4]], 3, between=0)
    [tensor([1, 2, 3]), tensor([0, 4])]
    """
    end = [] if between is None else [between]
    joined = list(chain.from_iterable([*tokens, *end] for tokens in documents))
    tokens = torch.tensor(joined[: len(joined) - len(end)], dtype=torch.long)
    # A last block of one token predicts nothing.
    return [block for block in tokens.split(length) if len(block) > 1]


def in_lines(documents: Sequence[Sequence[int]], length: int) -> list[Tensor]:
    """Return the first tokens of each document; one of a single token predicts nothing and goes.

    >>> in_lines([[1, 2, 3], [4]], 2)
    [tensor([1, 2])]
    """
    rows = [torch.tensor(tokens[:length], dtype=torch.long) for tokens in documents]
    return [row for row in rows if len(row) > 1]


def padded(rows: Sequence[Tensor], padding: int) -> dict[str, Tensor]:
    """Return samples as a causal language model of transformers takes them.

    Args:
        rows: tokens of each.
        padding: token that fills up the shorter ones; it is neither looked at nor predicted.

    Returns:
        `input_ids` and `labels` [B, T]; and `attention_mask` [B, T], where anything was filled up.

    >>> padded([torch.tensor([1, 2, 3]), torch.tensor([4, 5])], padding=0)["labels"]
    tensor([[   1,    2,    3],
            [   4,    5, -100]])
    """
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = pad(list(rows), batch_first=True, padding_value=padding)
    labels = pad(list(rows), batch_first=True, padding_value=IGNORED)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(inputs.shape[1]) < lengths[:, None]).long()
    some = {} if mask.all() else {"attention_mask": mask}
    return {"input_ids": inputs, **some, "labels": labels}
