"""Adapters of PEFT: added to the weights of a base as its formula says, or put in their places."""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportUnusedExpression=false

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import flatkit
from flatkit.checkpoints.inspection import inspect
from flatkit.errors import CheckpointError, MismatchError


def base() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.emb = nn.Embedding(7, 4)
    model.fc = nn.Linear(4, 4)
    model.conv = nn.Conv2d(4, 3, (3, 2))
    model.head = nn.Linear(4, 2)
    return model


def adapter() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "fc.lora_A.weight": (2, 4),
        "fc.lora_B.weight": (4, 2),
        "emb.lora_embedding_A": (2, 7),
        "emb.lora_embedding_B": (4, 2),
        "conv.lora_A.weight": (2, 4, 3, 2),
        "conv.lora_B.weight": (3, 2, 1, 1),
        "head.weight": (2, 4),
    }
    names = {f"base_model.model.{name}": shape for name, shape in shapes.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in names.items()}


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "base"}


def save(folder, state=None, **config: Any):
    save_file(adapter() if state is None else state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def expected(scale: float) -> dict[str, Tensor]:
    """Return the merged weights from the formula, in float64, written out by sums."""
    a = {name.removeprefix("base_model.model."): t.double() for name, t in adapter().items()}
    state = {name: tensor.double() for name, tensor in base().state_dict().items()}
    state["fc.weight"] += scale * a["fc.lora_B.weight"] @ a["fc.lora_A.weight"]
    state["emb.weight"] += scale * (a["emb.lora_embedding_B"] @ a["emb.lora_embedding_A"]).T
    for r in range(2):
        up, down = a["conv.lora_B.weight"][:, r, 0, 0], a["conv.lora_A.weight"][r]
        state["conv.weight"] += scale * up[:, None, None, None] * down
    state["head.weight"] = a["head.weight"]
    return state


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 3.0), ({"use_rslora": True}, 6 / 2**0.5), ({"alpha_pattern": {"fc|emb|conv": 4}}, 2.0)],
)
def test_lora_is_added_to_the_weights_of_its_base(tmp_path, config, scale):
    model = base()
    notes = flatkit.load(save(tmp_path, **config)).load_into(model)
    assert notes == ["LoRA added to 4 of the model's own weights"]
    for name, tensor in expected(scale).items():
        assert torch.allclose(model.state_dict()[name].double(), tensor, atol=1e-6), name


def test_the_file_itself_and_a_wrapped_base_are_understood(tmp_path):
    file = save(tmp_path) / "adapter_model.safetensors"
    model = nn.Module()
    model.body = base()
    flatkit.load(file).load_into(model)
    assert torch.allclose(model.body.fc.weight.double(), expected(3.0)["fc.weight"], atol=1e-6)
    facts = inspect(tmp_path)
    assert facts["format"] == "PEFT adapter (safetensors)"
    assert facts["metadata"]["base_model_name_or_path"] == "base"


def test_half_precision_bases_are_widened_to_the_adapter(tmp_path):
    model = base().bfloat16()
    before = model.fc.weight.detach().double()
    flatkit.load(save(tmp_path)).load_into(model)
    assert model.fc.weight.dtype == torch.float32
    change = expected(3.0)["fc.weight"] - base().fc.weight.double()
    assert torch.allclose(model.fc.weight.double(), before + change, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "state", "words"),
    [
        ({"peft_type": "IA3"}, None, "of the kind IA3"),
        ({"use_dora": True}, None, "has use_dora"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "starts from pissa_niter_4"),
        ({}, {"base_model.model.fc.lora_magnitude_vector": torch.ones(4)}, "lora_magnitude_vector"),
        ({}, {"base_model.model.other.lora_A.weight": torch.ones(2, 4)}, "no other.weight"),
        (
            {},
            {
                "base_model.model.fc.lora_A.weight": torch.ones(2, 5),
                "base_model.model.fc.lora_B.weight": torch.ones(4, 2),
            },
            r"changes fc.weight of shape \[4, 5\]",
        ),
    ],
)
def test_what_is_not_that_formula_is_explained(tmp_path, config, state, words):
    model = base()
    with pytest.raises(CheckpointError, match=words):
        flatkit.load(save(tmp_path, state, **config)).load_into(model)
    for name, tensor in base().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_weight_that_two_layers_use_is_not_changed_for_one(tmp_path):
    model = base()
    model.out = nn.Linear(4, 7, bias=False)
    model.out.weight = model.emb.weight
    with pytest.raises(CheckpointError, match=r"uses one tensor for it and out\.weight"):
        flatkit.load(save(tmp_path)).load_into(model)


class Places(nn.Module):
    """The places that PEFT makes for an adapter, under its names."""

    def __init__(self) -> None:
        super().__init__()
        self.peft_config = {"default": None}
        self.base_model, inner = nn.Module(), nn.Module()
        self.base_model.model = inner
        inner.fc = nn.Module()
        inner.fc.base_layer = nn.Linear(4, 4)
        inner.fc.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        inner.fc.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})


def test_an_adapter_goes_into_the_places_of_a_model_of_peft(tmp_path):
    state = {name: tensor for name, tensor in adapter().items() if ".fc." in name}
    model = Places()
    weight = model.base_model.model.fc.base_layer.weight.detach().clone()
    notes = flatkit.load(save(tmp_path, state)).load_into(model)
    assert notes == ["an adapter, around which the weights are the model's own"]
    fc = model.base_model.model.fc
    assert torch.equal(fc.lora_A["default"].weight, state["base_model.model.fc.lora_A.weight"])
    assert torch.equal(fc.lora_B["default"].weight, state["base_model.model.fc.lora_B.weight"])
    assert torch.equal(fc.base_layer.weight, weight)
    del state["base_model.model.fc.lora_B.weight"]
    with pytest.raises(MismatchError, match=r"missing .*fc.lora_B.default.weight"):
        flatkit.load(save(tmp_path, state)).load_into(model)
    model.peft_config["other"] = None
    with pytest.raises(CheckpointError, match="several adapters"):
        flatkit.load(tmp_path).load_into(model)


def test_peft_itself_agrees(tmp_path):
    peft = pytest.importorskip("peft")

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))

    config = peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=["0", "2"], modules_to_save=["3"], bias="lora_only",
        rank_pattern={"2": 3}, alpha_pattern={"2": 7},
    )  # fmt: skip
    trained = peft.get_peft_model(build(), config)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    trained.save_pretrained(tmp_path)
    x = torch.randn(6, 5)
    fresh, plain = peft.get_peft_model(build(), config), build()
    flatkit.load(tmp_path).load_into(fresh)
    flatkit.load(tmp_path).load_into(plain)
    assert torch.equal(fresh(x), trained(x))
    assert torch.allclose(plain(x), trained(x), atol=1e-5)
    torch.save(trained.merge_and_unload().state_dict(), tmp_path / "x.pt")  # as refusals advise
    flatkit.load(tmp_path / "x.pt").load_into(merged := build())
    assert torch.allclose(plain(x), merged(x), atol=1e-5)
