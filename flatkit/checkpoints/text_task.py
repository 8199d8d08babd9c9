"""A causal language model of Hugging Face, from the folder of its weights: built, over texts.

Nothing of the folder is run: models and tokenizers are those that transformers itself has.
"""

import importlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatkit.checkpoints.parts import Parts
from flatkit.data.texts import Layout, in_blocks, in_lines, padded, read_texts
from flatkit.errors import (
    CheckpointError,
    DataError,
    InvalidArgumentError,
    MissingDependencyError,
)
from flatkit.objective.task import Task

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files of which a tokenizer needs one; without any, transformers makes one that knows no word."""
_OWN: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_USUAL = 256
"""Tokens of a sample, where nobody says how many: attention costs their square."""


def text_task(folder: Path, parts: Parts) -> tuple[Task, dict[str, Any]]:
    """Return the task of a folder's model, its weights at random, and what a report says of it.

    The loss is the model's own, the mean over all tokens that are predicted, each from those before
    it in its sample.

    Args:
        folder: with `config.json` and the files of a tokenizer.
        parts: whose `texts` are measured.

    Raises:
        CheckpointError: the folder lacks these, or is of another kind of model.
        DataError: the texts cannot be read, or hold nothing to predict.
        InvalidArgumentError: samples longer than the model takes.
        MissingDependencyError: there is no transformers.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"texts need the folder of a Hugging Face model, and {folder} has no config.json"
        )
    library = _library()
    with _told(folder, "model"):
        config = library.AutoConfig.from_pretrained(folder, **_OWN)
        config.use_cache = False  # of keys and values, which only generation reads
        model = library.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    _check_kind(folder, config, type(model).__name__)
    with _told(folder, "tokenizer"):
        if not any((folder / name).is_file() for name in _TOKENIZERS):
            raise OSError(f"none of {', '.join(_TOKENIZERS)} is in it")
        tokenizer = library.AutoTokenizer.from_pretrained(folder, **_OWN)
    reader = _Reader(folder, tokenizer, _length(config, parts), parts)
    data, about = reader.samples(parts.texts, config)
    test, about_test = reader.samples(parts.test_texts, config) if parts.test_texts else (None, {})
    told = {"texts": about, **({"test_texts": about_test} if about_test else {})}
    name = folder.resolve().name
    return Task(model.float().eval(), "model", data, test, name=name), told


class _Reader:
    """What makes samples of texts.

    Args:
        folder: of the tokenizer, for messages.
        tokenizer: of transformers.
        length: tokens of a sample at most.
        parts: how texts become samples.
    """

    def __init__(self, folder: Path, tokenizer: Any, length: int, parts: Parts) -> None:
        self._folder, self._tokenizer, self._length = folder, tokenizer, length
        self._layout: Layout = parts.text_layout

    def samples(self, files: Sequence[str], config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the samples of files, and what a report says of them."""
        texts, own = read_texts(files, self._layout), self._tokenizer
        whole = self._layout == "blocks"
        # A block begins anywhere in a text, a line at its beginning, which some models mark.
        given: list[list[int]] = own(
            list(texts.documents), add_special_tokens=not whole, verbose=False
        )["input_ids"]
        end = own.eos_token_id
        rows = in_blocks(given, self._length, end) if whole else in_lines(given, self._length)
        if not rows:
            raise DataError(
                f"{', '.join(files)}: no sample of two tokens or more; a language model predicts "
                "each from those before it"
            )
        highest, words = max(int(row.max()) for row in rows), int(config.vocab_size)
        if highest >= words:
            raise CheckpointError(
                f"the tokenizer in {self._folder} makes token {highest:,}, and the model knows "
                f"{words:,}; it is that of another model"
            )
        about = {
            "files": texts.digests,
            "layout": self._layout,
            "length": self._length,
            "samples": len(rows),
            "predicted_tokens": sum(len(row) - 1 for row in rows),
        }
        # Any token will do: what fills up is masked, and nothing is predicted of it.
        return padded(rows, padding=end or 0), about


def _length(config: Any, parts: Parts) -> int:
    """Return how many tokens a sample has at most."""
    places = getattr(config, "max_position_embeddings", None)
    if parts.text_length is None:
        return min(_USUAL, places or _USUAL)
    if places is not None and parts.text_length > places:
        raise InvalidArgumentError(
            f"text_length must be at most {places:,}, the positions that the model has, got "
            f"{parts.text_length:,}"
        )
    return parts.text_length


def _check_kind(folder: Path, config: Any, name: str) -> None:
    """Refuse a model that was trained for something else than predicting the next token."""
    trained = list(getattr(config, "architectures", None) or [name])
    if name not in trained:
        raise CheckpointError(
            f"{folder} holds a {trained[0]}, and texts are for causal language models, here "
            f"{name}; give `task`, a function that builds model, loss and data"
        )


def _library() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependencyError(
            "texts need transformers: pip install 'flatkit[integrations]'"
        ) from error


@contextmanager
def _told(folder: Path, what: str) -> Generator[None, None, None]:
    """Say of errors of transformers what was looked for."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        way = (
            "tokenizer.save_pretrained(folder) puts one beside the weights"
            if what == "tokenizer"
            else "give `task`, a function that builds model, loss and data"
        )
        raise CheckpointError(
            f"{folder}: transformers builds no {what} of it ({said}); {way}"
        ) from error
