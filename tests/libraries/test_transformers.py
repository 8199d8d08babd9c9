"""Tiny models of Hugging Face, saved by `save_pretrained`, analyzed from their folders."""

import warnings

import pytest
import torch
from torch import Tensor

import flatkit
from flatkit.checkpoints.inspection import inspect
from tests.libraries.reference import top_eigenvalue
from tests.versions import before

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

Batch = dict[str, Tensor]


def sentences() -> Batch:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, 13, (9, 6), generator=generator)
    lengths = torch.tensor([6, 3, 5, 6, 2, 4, 6, 3, 5])
    mask = (torch.arange(6) < lengths[:, None]).long()
    return {
        "input_ids": words,
        "attention_mask": mask,
        "labels": words.masked_fill(mask == 0, -100),
    }


def masked_words() -> Batch:
    batch = sentences()
    batch["labels"] = batch["labels"].masked_fill(torch.arange(6) % 3 != 1, -100)
    return batch


def classes() -> Batch:
    return {**sentences(), "labels": torch.arange(9) % 3}


def pictures() -> Batch:
    pixels = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels, "labels": torch.arange(8) % 3}


def gpt2():
    return transformers.GPT2LMHeadModel, transformers.GPT2Config(
        vocab_size=13, n_positions=6, n_embd=8, n_layer=1, n_head=2
    )


TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def bert(kind: str, **extra):
    config = transformers.BertConfig(
        vocab_size=13,
        **TINY,
        max_position_embeddings=6,
        **extra,
    )
    return getattr(transformers, kind), config


def vit():
    return transformers.ViTForImageClassification, transformers.ViTConfig(
        **TINY,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )


MODELS = {
    "GPT-2": (gpt2, sentences, "shifted by one"),
    "BERT, masked words": (lambda: bert("BertForMaskedLM"), masked_words, "that are not -100"),
    "BERT, classes": (
        lambda: bert("BertForSequenceClassification", num_labels=3),
        classes,
        "samples",
    ),
    "ViT": (vit, pictures, "samples"),
}


_OLD, _NEW = "vit.encoder.layer.0.", "vit.layers.0."
RENAMED = {
    "vit": {  # transformers 5 saves the names of version 4, and has others in memory
        f"{_OLD}attention.attention.query.": f"{_NEW}attention.q_proj.",
        f"{_OLD}attention.attention.key.": f"{_NEW}attention.k_proj.",
        f"{_OLD}attention.attention.value.": f"{_NEW}attention.v_proj.",
        f"{_OLD}attention.output.dense.": f"{_NEW}attention.o_proj.",
        f"{_OLD}intermediate.dense.": f"{_NEW}mlp.fc1.",
        f"{_OLD}output.dense.": f"{_NEW}mlp.fc2.",
        _OLD: _NEW,
    }
    if transformers.__version__.startswith("5")
    else {}
}


@pytest.mark.parametrize(("make", "batch", "mean_over"), MODELS.values(), ids=MODELS.keys())
def test_from_a_folder_to_the_top_eigenvalue(make, batch, mean_over, tmp_path):
    kind, config = make()
    torch.manual_seed(0)
    trained = kind(config)
    with torch.no_grad():  # away from the tiny initial weights, where curvature is nearly none
        for parameter in trained.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path)

    facts = inspect(tmp_path)
    assert facts["format"] == "Hugging Face folder (safetensors)"
    assert facts["metadata"]["model_type"] == config.model_type

    if kind.__name__.startswith("GPT2") and before(transformers, 4, 47):
        config._attn_implementation = "eager"  # its mask of the other overflows in float64
    fresh = kind(config)  # with the attention that transformers chooses
    flatkit.load(tmp_path).load_into(fresh, rename=RENAMED.get(config.model_type))
    data = batch()
    report = flatkit.analyze(
        fresh,
        "model",
        data,
        measures=["loss", "top_eigenvalues"],
        dtype="float64",
        chunk_size=4,
        tolerance=1e-6,
    )

    config._attn_implementation = "eager"
    plain = kind.from_pretrained(tmp_path, config=config, attn_implementation="eager").double()
    plain.eval()
    double = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    expected = top_eigenvalue(plain, lambda model: model(**double).loss)
    loss = float(plain(**double).loss.detach())
    assert report.result("loss").value == pytest.approx(loss, rel=1e-6)  # a loss in float32
    assert report.result("top_eigenvalues").value[0] == pytest.approx(expected, rel=1e-5)
    assert report.objective["mean_over"].endswith(mean_over)


def test_shards_that_transformers_wrote_are_read(tmp_path):
    kind, config = gpt2()
    model = kind(config)
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    fresh = kind(config)
    flatkit.load(tmp_path).load_into(fresh)
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)
