"""Causal language models in folders of Hugging Face, measured over files of text."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import flatkit
from flatkit.errors import CheckpointError, DataError, InvalidArgumentError
from flatkit_cli.main import main
from tests.libraries.reference import top_eigenvalue
from tests.versions import before

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

LINES = [
    "the cat sat on the mat and looked at the moon",
    "a dog ran",
    "the moon is made of cheese said the cat to the dog on the mat",
    "nobody sat",
    "cheese is made of milk and the dog knew it",
    "moon",
]


def save_folder(folder: Path, *, width: int = 8, layers: int = 1, places: int = 8) -> None:
    """Save a GPT-2 of random weights, and a tokenizer of whole words."""
    words = sorted({word for line in LINES for word in line.split()})
    vocabulary = {word: number for number, word in enumerate(["<end>", "<unknown>", *words])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<end>", unk_token="<unknown>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=places, n_embd=width, n_layer=layers, n_head=2
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():  # away from the tiny initial weights, where curvature is nearly none
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_folder(tmp_path / "gpt")
    Path("train.txt").write_text("\n".join(LINES), encoding="utf-8")
    Path("test.txt").write_text("the dog sat on the moon", encoding="utf-8")
    return tmp_path / "gpt"


def plain_model(folder: Path):
    kind = transformers.GPT2LMHeadModel
    return kind.from_pretrained(folder, attn_implementation="eager").double().eval()


def plain_loss(model, rows: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over all predicted tokens, each sample by itself and without any padding."""
    losses = []
    for row in rows:
        scores = model(row[None]).logits[0]
        losses.append(F.cross_entropy(scores[:-1], row[1:], reduction="none"))
    return torch.cat(losses).mean()


def rows_of(folder: Path, layout: str) -> list[torch.Tensor]:
    encode = transformers.AutoTokenizer.from_pretrained(folder).encode
    if layout == "lines":
        rows = [torch.tensor(encode(line)[:8]) for line in LINES]
        return [row for row in rows if len(row) > 1]
    tokens = encode(" ".join(LINES))
    return [torch.tensor(tokens[at : at + 8]) for at in range(0, len(tokens), 8)]


@pytest.mark.parametrize("layout", ["blocks", "lines"])
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_loss_and_curvature_are_those_of_every_predicted_token(folder, layout, chunk_size):
    task = flatkit.language_model(folder, "train.txt", layout=layout)
    # In float64 the mask of older transformers overflows.
    narrow = before(transformers, 4, 53)
    found = flatkit.analyze(
        task,
        measures=["loss", "top_eigenvalues"],
        dtype="float32" if narrow else "float64",
        chunk_size=chunk_size,
        tolerance=1e-6,
        progress=False,
    )
    model, rows = plain_model(folder), rows_of(folder, layout)
    expected = float(plain_loss(model, rows).detach())
    assert found.result("loss").value == pytest.approx(expected, rel=1e-6)
    top = top_eigenvalue(model, lambda changed: plain_loss(changed, rows))
    near = pytest.approx(top, rel=1e-4 if narrow else 1e-5)
    assert found.result("top_eigenvalues").value[0] == near
    about = found.checkpoint["texts"]
    assert about["samples"] == len(rows)
    assert about["predicted_tokens"] == sum(len(row) - 1 for row in rows)
    assert list(about["files"]) == ["train.txt"] and about["layout"] == layout


def test_the_shell_measures_texts_and_compares_folders_by_them(folder, tmp_path):
    given = ["--texts", "train.txt", "--text-layout", "lines", "--test-texts", "test.txt"]
    given += ["--measures", "loss,gradient_norm", "--device", "cpu"]
    assert main(["analyze", "gpt", *given, "--json", "a.json"]) == 0
    report = flatkit.load_results("a.json").entries[0].report
    losses = {result.settings["split"]: result.value for result in report.all("loss")}
    encode = transformers.AutoTokenizer.from_pretrained(folder).encode
    rows = [torch.tensor(encode("the dog sat on the moon"))]
    expected = float(plain_loss(plain_model(folder), rows).detach())
    assert losses["test"] == pytest.approx(expected, rel=1e-5)

    other = tmp_path / "other"
    save_folder(other)
    weights = transformers.GPT2LMHeadModel.from_pretrained(other)
    with torch.no_grad():
        weights.transformer.wte.weight.mul_(2)
    weights.save_pretrained(other)
    found = flatkit.compare(
        ["gpt", "other"], texts=["train.txt"], measures=["loss"], jobs=1, progress=False
    )
    for entry in found.entries:
        alone = flatkit.analyze(
            flatkit.language_model(entry.name, "train.txt"), measures=["loss"], progress=False
        )
        assert entry.report.result("loss").value == alone.result("loss").value


def test_two_files_are_parted_by_the_end_of_text(folder):
    Path("second.txt").write_text("a dog ran", encoding="utf-8")
    task = flatkit.language_model(folder, ["second.txt", "second.txt"], length=4)
    own = transformers.AutoTokenizer.from_pretrained(folder)
    a, dog, ran = own("a dog ran")["input_ids"]
    assert task.data["input_ids"].tolist() == [[a, dog, ran, own.eos_token_id], [a, dog, ran, 0]]
    assert task.data["labels"].tolist()[1] == [a, dog, ran, -100]
    assert task.data["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_what_cannot_be_measured_is_refused_with_the_way_out(folder, tmp_path):
    def refused(error, match, **given):
        with pytest.raises(error, match=match):
            flatkit.language_model(**{"folder": folder, "texts": "train.txt", **given})

    refused(DataError, "none.txt cannot be read as text", texts="none.txt")
    Path("empty.txt").write_text(" \n")
    refused(DataError, "empty.txt is empty", texts="empty.txt")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00")
    refused(DataError, "not text in UTF-8.*iconv", texts="bytes.txt")
    Path("word.txt").write_text("moon")
    refused(DataError, "no sample of two tokens", texts="word.txt")
    refused(InvalidArgumentError, "at most 8, the positions", length=9)
    refused(InvalidArgumentError, "text_length must be a whole number >= 2", length=1)
    refused(InvalidArgumentError, "text_layout must be one of", layout="words")

    bare = tmp_path / "bare"
    plain_model(folder).save_pretrained(bare)
    refused(CheckpointError, "no tokenizer of it.*save_pretrained", folder=bare)

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2Model"]}))
    refused(CheckpointError, "holds a GPT2Model.*give `task`")
    remote = {**config, "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(remote))
    (folder / "mine.py").write_text("raise SystemExit('code of a checkpoint was run')")
    refused(CheckpointError, "builds no model of it.*give `task`")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--text-length", "4"], "--text-length need --texts"),
        (["--texts", "train.txt", "--model", "mlp", "--data", "digits"], "leave out --model"),
        (["--texts", "train.txt", "--task", "a.py:build"], "leave out --task"),
    ],
)
def test_options_that_exclude_each_other_are_misuse(folder, given, words, capsys):
    assert main(["analyze", "gpt", *given]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_gpt_2_of_ten_million_weights_from_folder_to_report(tmp_path):
    save_folder(tmp_path / "gpt", width=320, layers=8, places=64)
    (tmp_path / "train.txt").write_text("\n".join(LINES * 12))
    task = flatkit.language_model(tmp_path / "gpt", tmp_path / "train.txt")
    assert sum(p.numel() for p in task.model.parameters()) > 9.8e6
    found = flatkit.analyze(task, budget=20, progress=False)
    rows = [row[row != -100] for row in task.data["labels"]]
    expected = float(plain_loss(plain_model(tmp_path / "gpt"), rows).detach())
    assert found.result("loss").value == pytest.approx(expected, rel=1e-5)
    assert found.result("top_eigenvalues").value[0] > 0
