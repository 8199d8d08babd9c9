"""`flatkit.language_model`: a folder of Hugging Face and texts become a task."""

from collections.abc import Sequence
from pathlib import Path

from flatkit.checkpoints.loading import load
from flatkit.checkpoints.parts import Parts
from flatkit.checkpoints.task_file import assemble
from flatkit.data.texts import Layout
from flatkit.objective.task import Task


def language_model(
    folder: str | Path,
    texts: str | Path | Sequence[str | Path],
    *,
    test_texts: str | Path | Sequence[str | Path] = (),
    layout: Layout = "blocks",
    length: int | None = None,
) -> Task:
    """Return the task of a causal language model of Hugging Face over texts.

        task = flatkit.language_model("runs/gpt", "train.txt", test_texts="held_out.txt")
        flatkit.analyze(task, samples=64)

    Its loss is the mean over all tokens that are predicted, in nats, each from those before it in
    its sample, exactly, whatever the chunks and however much of the samples is filled up. Model
    and tokenizer are those that transformers builds of the folder's `config.json` and of the files
    of its tokenizer; no code of the folder is run, nothing is downloaded.

    Args:
        folder: with `config.json`, weights and tokenizer, as `save_pretrained` writes them.
        texts: files in UTF-8 that are measured on.
        test_texts: files that it was not trained on.
        layout: `blocks` cuts the files into blocks of tokens, `lines` makes each line a sample.
        length: tokens of a sample at most; by default as many as the model takes, at most 256.

    Raises:
        CheckpointError: the folder holds no such model or tokenizer, or weights do not fit.
        DataError: the texts cannot be read, or hold nothing to predict.
        InvalidArgumentError: samples longer than the model takes.
        MissingDependencyError: there is no transformers.
    """
    files, test = _files(texts), _files(test_texts)
    parts = Parts(texts=files, test_texts=test, text_layout=layout, text_length=length)
    return assemble(load(folder), parts)


def _files(given: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))
