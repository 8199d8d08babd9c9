"""What torch's own `load_state_dict` makes of a file, its hooks included, is what a model gets."""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportUnusedExpression=false

import copy
import json
import struct
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import flatkit
from flatkit.errors import CheckpointError, FlatkitError, MismatchError
from tests.versions import UNSAVED

pytestmark = pytest.mark.filterwarnings("ignore")


def loaded(tmp_path, state, model, **options) -> list[str]:
    torch.save(state, tmp_path / "x.pt")
    return flatkit.load(tmp_path / "x.pt").load_into(model, **options)


def assert_as_torch(tmp_path, state, model, theirs=None) -> None:
    """Hold the model against a copy that torch has loaded (another state, where names differ)."""
    expected = copy.deepcopy(model)
    expected.load_state_dict(copy.deepcopy(state if theirs is None else theirs))
    loaded(tmp_path, state, model)
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert not isinstance(tensor, Tensor) or torch.equal(model.state_dict()[name], tensor)


def prefixed(state, prefix: str):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


class Renaming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        # Its public name is newer than torch 2.4.
        self._register_load_state_dict_pre_hook(self.rename, with_module=True)

    @staticmethod
    def rename(module, state, prefix, *_):
        for name in [n for n in state if n.startswith(f"{prefix}linear.")]:
            state[name.replace("linear.", "fc.")] = state.pop(name)


class Versioned(nn.Module):
    """As modules of torchvision do it: old files have half the weights."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if (metadata.get("version") or 1) < 2:
            state[f"{prefix}weight"] *= 2  # in place, as users write it
        super()._load_from_state_dict(state, prefix, metadata, *rest)


class Reshaping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))

    def _load_from_state_dict(self, state, prefix, *rest):
        state[f"{prefix}weight"] = state[f"{prefix}weight"].reshape(2, 3)
        super()._load_from_state_dict(state, prefix, *rest)


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.extra = nn.Parameter(torch.zeros(2)), {"a": 0}

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class Own(nn.Linear):
    """A model whose own method says nothing of names."""

    def load_state_dict(self, state, strict=True, assign=False):  # type: ignore[override]
        super().load_state_dict(state, strict=False)


def test_old_names_of_weight_norm_also_behind_a_prefix(tmp_path):
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)).state_dict()
    for prefix in ("", "module.", "model.net."):
        new = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
        assert_as_torch(tmp_path, prefixed(old, prefix), new, old)
    bare = nn.utils.weight_norm(nn.Linear(3, 4, bias=False)).state_dict()
    new = parametrizations.weight_norm(nn.Linear(3, 4, bias=False))
    assert_as_torch(tmp_path, prefixed(bare, "module."), new, bare)  # no name fits as it is


def test_hooks_that_rename_also_behind_a_prefix(tmp_path):
    state = {"linear.weight": torch.randn(2, 3), "linear.bias": torch.zeros(2)}
    for prefix in ("", "module."):
        assert_as_torch(tmp_path, prefixed(state, prefix), Renaming(), state)
    outer = nn.Module()
    outer.body = Renaming()
    assert_as_torch(tmp_path, state, outer, prefixed(state, "body."))


def test_versions_that_torch_notes_reach_the_modules(tmp_path):
    old = {"weight": torch.ones(3)}
    assert_as_torch(tmp_path, old, Versioned())
    new = Versioned().state_dict()
    new["weight"] += 1
    model = Versioned()
    assert_as_torch(tmp_path, new, model)
    assert model.weight.tolist() == [1, 1, 1]
    checkpoint = flatkit.load(tmp_path / "x.pt")
    assert checkpoint.versions[""] == {"version": 2}
    inside = nn.Sequential(Versioned())
    checkpoint.load_into(inside)  # the name of the module is put right as those of its tensors
    assert inside[0].weight.tolist() == [1, 1, 1]


def test_a_hook_that_writes_into_what_it_is_given_leaves_the_checkpoint_alone(tmp_path):
    torch.save({"weight": torch.ones(3, dtype=torch.float64)}, tmp_path / "x.pt")
    checkpoint = flatkit.load(tmp_path / "x.pt")
    for _ in range(2):
        model = Versioned()
        checkpoint.load_into(model)  # twice inside: the precision changes
        assert model.weight.tolist() == [2, 2, 2]
    assert checkpoint.state_dict["weight"].tolist() == [1, 1, 1]


BATCHNORM = ("weight", "bias", "running_mean", "running_var")
OTHER = nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("model", "state"),
    [
        (Reshaping(), {"weight": torch.arange(6.0)}),
        (Own(3, 2), {"weight": torch.ones(2, 3), "bias": torch.ones(2)}),
        (nn.BatchNorm1d(2), {n: torch.ones(2) for n in BATCHNORM}),
        (nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2).state_dict()),
        (nn.LSTM(2, 3), nn.LSTM(2, 3).state_dict()),
        (nn.ParameterList([torch.zeros(())]), {"0": torch.ones(1)}),
        (Extra(), {"weight": torch.ones(2), "_extra_state": {"a": [1, torch.ones(1)]}}),
        (nn.LazyLinear(2), nn.Linear(3, 2).state_dict()),
        (nn.utils.spectral_norm(nn.Linear(3, 2)), nn.utils.spectral_norm(OTHER).state_dict()),
    ],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_modules_with_ways_of_their_own_get_what_torch_gives(tmp_path, model, state):
    assert_as_torch(tmp_path, state, model)


def test_extra_state_that_is_no_plain_data_is_left_and_said(tmp_path):
    state = {"weight": torch.ones(2), "_extra_state": Renaming}
    model = Extra()
    assert loaded(tmp_path, state, model) == ["extra state left as the model was built: (its own)"]
    assert model.extra == {"a": 0} and model.weight.tolist() == [1, 1]


def test_a_scripted_model_takes_weights(tmp_path):
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.Tanh()))
    state = nn.Sequential(nn.Linear(3, 2)).double().state_dict()
    loaded(tmp_path, state, model)
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


class Noting(nn.Module):
    """A module that changes itself while it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(2)), 0
        self.register_buffer("scale", torch.ones(2))

    def _load_from_state_dict(self, *arguments):
        self.seen += 1
        self.scale = torch.full((3,), 7.0)
        self.extra = nn.Linear(1, 1)
        super()._load_from_state_dict(*arguments)


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.ones(2)},
        {"weight": torch.ones(3), "scale": torch.ones(3)},
        {"weight": torch.tensor([1.0, float("nan")]), "scale": torch.ones(3)},
        {"weight": torch.ones(2).int(), "scale": torch.ones(3)},
    ],
    ids=["missing", "shape", "not finite", "codes"],
)
def test_what_is_refused_leaves_the_model_as_it_was(tmp_path, state):
    model = nn.Sequential(Noting(), nn.LazyLinear(2))
    before = dict(vars(model[0]))
    weight, scale = model[0].weight, model[0].scale
    rest = {"1.weight": torch.ones(2, 3), "1.bias": torch.ones(2)}
    with pytest.raises(FlatkitError):
        loaded(tmp_path, {**prefixed(state, "0."), **rest}, model)
    assert vars(model[0]) == before and not hasattr(model[0], "extra")
    assert model[0].weight is weight and weight.tolist() == [0, 0]
    assert model[0].scale is scale and scale.tolist() == [1, 1]
    assert type(model[1].weight) is nn.UninitializedParameter
    loaded(tmp_path, {"0.weight": torch.ones(2), "0.scale": torch.ones(3), **rest}, model)
    assert model[0].seen > 0 and model[1].weight.tolist() == [[1] * 3] * 2


def test_a_hook_that_fails_is_shown_with_its_line(tmp_path):
    class Failing(nn.Linear):
        def _load_from_state_dict(self, *arguments):
            raise KeyError("my key")

    with pytest.raises(CheckpointError, match=r"KeyError: 'my key' \(.*test_load_hooks.py, line"):
        loaded(tmp_path, nn.Linear(3, 2).state_dict(), Failing(3, 2))


# Pruning


def pruned() -> nn.Linear:
    layer = nn.Linear(3, 2)
    prune.l1_unstructured(layer, "weight", 3)
    return layer


def test_a_pruned_file_into_a_dense_model_is_multiplied_by_its_mask(tmp_path):
    layer, model = pruned(), nn.Linear(3, 2)
    assert loaded(tmp_path, layer.state_dict(), model) == ["pruned: multiplied weight by its mask"]
    assert torch.equal(model.weight, layer.weight) and int((model.weight == 0).sum()) == 3
    whole = nn.Sequential(model)
    loaded(tmp_path, prefixed(layer.state_dict(), "module.0."), whole)
    assert torch.equal(whole[0].weight, layer.weight)


def test_a_dense_file_into_a_pruned_model_keeps_its_values_or_is_refused(tmp_path):
    layer = pruned()
    x = torch.randn(4, 3)
    expected = layer(x)
    model = nn.Linear(3, 2)
    prune.custom_from_mask(model, "weight", layer.weight_mask)
    prune.remove(layer, "weight")
    loaded(tmp_path, layer.state_dict(), model)
    assert torch.equal(model(x), expected)
    with pytest.raises(CheckpointError, match="mask would set 3 weights of weight to zero"):
        loaded(tmp_path, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, model)


def test_a_pruned_file_into_a_pruned_model_is_untouched(tmp_path):
    layer, model = pruned(), pruned()
    loaded(tmp_path, layer.state_dict(), model)
    assert torch.equal(model.weight_orig, layer.weight_orig)
    assert torch.equal(model.weight_mask, layer.weight_mask)


# Quantised weights and other dtypes


def model_with(dtype: torch.dtype) -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2, 2, dtype=dtype), requires_grad=False)
    return model


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "int32", "int64", "bool", "uint16", "complex64"]
)
def test_whole_and_complex_numbers_are_no_real_weights(tmp_path, dtype):
    if dtype in UNSAVED:
        pytest.skip("this torch cannot save the dtype")
    model = model_with(torch.float32)
    state = {"weight": torch.ones(2, 2).to(getattr(torch, dtype))}
    with pytest.raises(
        CheckpointError, match=f"weight is {dtype} in the file and float32 in the m"
    ):
        loaded(tmp_path, state, model)
    assert not model.weight.any() and model.weight.dtype == torch.float32


def test_real_weights_fill_complex_ones_and_whole_numbers_must_hold_exactly(tmp_path):
    model = model_with(torch.complex64)
    loaded(tmp_path, {"weight": torch.ones(2, 2)}, model)
    assert model.weight.dtype == torch.complex64 and (model.weight == 1).all()
    model = model_with(torch.int64)
    loaded(tmp_path, {"weight": torch.full((2, 2), 3.0)}, model)
    assert (model.weight == 3).all()
    with pytest.raises(CheckpointError, match="which cannot hold its values"):
        loaded(tmp_path, {"weight": torch.full((2, 2), 1.5)}, model)


@pytest.mark.parametrize(
    ("file", "expected"),
    [("complex64", "complex64"), ("complex128", "complex128")],
)
def test_complex_weights_keep_their_imaginary_parts_and_take_the_width_of_the_file(
    tmp_path, file, expected
):
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    model.out = nn.Linear(2, 1)
    model.register_buffer("turn", torch.full((2,), 1j), persistent=False)
    values = torch.tensor([1 + 2j, 3 - 4j], dtype=getattr(torch, file))
    state = {**model.state_dict(), "weight": values}
    loaded(tmp_path, state, model)
    assert model.weight.dtype == getattr(torch, expected)
    assert torch.equal(model.weight, values)
    assert model.turn.tolist() == [1j, 1j]  # type: ignore[union-attr]


NAN = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7D, "float8_e4m3fnuz": 128, "float8_e5m2fnuz": 128}


@pytest.mark.parametrize("dtype", NAN)
def test_8_bit_floats_are_read_exactly_in_float32(tmp_path, dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes[codes.view(getattr(torch, dtype)).float().isfinite()].view(getattr(torch, dtype))
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(len(values), dtype=torch.bfloat16))
    loaded(tmp_path, {"weight": values}, model)
    assert model.weight.dtype == torch.float32 and torch.equal(model.weight, values.float())
    state = {"weight": values.clone()}
    state["weight"].view(torch.uint8)[0] = {"float8_e5m2": 0x7C, "float8_e4m3fn": 0x7F}.get(
        dtype, 0x80
    )
    with pytest.raises(CheckpointError, match="values of weight that are NaN or infinite: 1"):
        loaded(tmp_path, state, model)
    assert flatkit.load(tmp_path / "x.pt").non_finite() == {"weight": 1}


CODES = torch.ones(2, 3, dtype=torch.int8)
QUANTISED: dict[str, dict[str, Tensor]] = {
    "GPTQ or AWQ": {
        "fc.qweight": CODES.int(),
        "fc.qzeros": CODES.int(),
        "fc.scales": torch.ones(2).half(),
        "fc.bias": torch.ones(2),
    },
    "8 bits of bitsandbytes": {
        "fc.weight": CODES,
        "fc.SCB": torch.ones(2),
        "fc.bias": torch.ones(2),
    },
    "4 bits of bitsandbytes": {
        "fc.weight": torch.ones(3, 1, dtype=torch.uint8),
        "fc.weight.absmax": torch.ones(1),
        "fc.weight.quant_map": torch.ones(16),
        "fc.bias": torch.ones(2),
    },
    "8 bits with scales": {
        "fc.weight": torch.ones(2, 3).to(torch.float8_e4m3fn),
        "fc.weight_scale_inv": torch.ones(1),
        "fc.bias": torch.ones(2),
    },
}


@pytest.mark.parametrize("scheme", QUANTISED)
@pytest.mark.parametrize("ignore", [(), ("fc.*",)])
def test_codes_with_scales_are_refused_by_their_scheme_whatever_is_ignored(
    tmp_path, scheme, ignore
):
    model = nn.Sequential(OrderedDict(fc=nn.Linear(3, 2)))
    with pytest.raises(CheckpointError, match=f"holds quantised weights \\({scheme}\\)") as caught:
        loaded(tmp_path, QUANTISED[scheme], model, ignore=ignore, allow_uninitialised=True)
    assert "`ignore`" not in str(caught.value)


def test_layers_that_torch_quantised_are_refused_as_such_and_observed_ones_are_not(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    state = torch.ao.quantization.quantize_dynamic(build(), {nn.Linear}).state_dict()  # pyright: ignore
    with pytest.raises(CheckpointError, match=r"quantised weights \(torch\.ao\): 0\.zero_point"):
        loaded(tmp_path, state, build(), ignore=["*"], allow_uninitialised=True)
    observed = {f"0.weight_fake_quant.{name}": torch.ones(1) for name in ("scale", "zero_point")}
    loaded(tmp_path, {**build().state_dict(), **observed}, build(), ignore=["0.weight_fake*"])


def test_entries_of_less_than_a_byte_are_named_and_cost_nothing_else(tmp_path):
    entries = {
        "weight": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]},
        "bias": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    table = json.dumps(entries).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(table)) + table + bytes(8))
    checkpoint = flatkit.load(tmp_path / "x")
    assert checkpoint.state_dict["bias"].tolist() == [0]
    with pytest.raises(MismatchError, match=r"(?s)not read .*weight .*F4, .*dequantise them"):
        checkpoint.load_into(nn.Linear(4, 1))


def test_quantised_tensors_of_torch_are_named_as_such(tmp_path):
    codes = torch.quantize_per_tensor(torch.randn(2, 3), 0.1, 0, torch.qint8)
    state = {"weight": codes, "bias": torch.zeros(2)}
    with pytest.raises(MismatchError, match=r"1 not read") as caught:
        loaded(tmp_path, state, nn.Linear(3, 2))
    assert "a quantised tensor, whose codes cannot be differentiated" in str(caught.value)
    assert "`ignore`" not in str(caught.value)


# Values that are not finite


def test_infinite_masks_in_buffers_are_no_damage_and_everything_else_is(tmp_path):
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2))
    model.register_buffer("mask", torch.zeros(2))
    model.norm = nn.BatchNorm1d(2)
    state = {**model.state_dict(), "mask": torch.tensor([0.0, -float("inf")])}
    loaded(tmp_path, state, model)
    assert model.mask.tolist() == [0, -float("inf")]  # type: ignore[union-attr]
    for name, value in (
        ("mask", "nan"), ("weight", "inf"), ("weight", "nan"), ("norm.running_var", "inf"),
    ):  # fmt: skip
        wrong = {**state, name: torch.tensor([0.0, float(value)])}
        with pytest.raises(CheckpointError, match=f"values of {name} that are NaN or infinite: 1"):
            loaded(tmp_path, wrong, model)


# Weights that nothing sets


def test_weights_that_would_stay_at_random_must_be_allowed_and_are_said(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(body=nn.Linear(3, 3), head=nn.Linear(3, 2)))
    body = prefixed(nn.Linear(3, 3).state_dict(), "body.")
    state = {**body, "old.weight": torch.ones(9, 3), "old.bias": torch.ones(9)}
    with pytest.raises(MismatchError) as caught:
        loaded(tmp_path, state, model)
    assert "`ignore`" not in str(caught.value)  # it would drop what may be the head
    ignore = ["head.*", "old.*"]
    with pytest.raises(CheckpointError, match=r"sets head.weight, head.bias, and `ignore`") as said:
        loaded(tmp_path, state, model, ignore=ignore)
    head = model.head.weight.detach().clone()
    recipe = str(said.value).partition("(from Python: ")[2].removesuffix(")")
    options = eval(f"dict({recipe})")
    notes = loaded(tmp_path, state, model, ignore=ignore, **options)
    assert "left as the model was built: head.weight, head.bias" in notes
    assert "ignored: old.weight, old.bias" in notes
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.body.weight, body["body.weight"])


def test_a_head_of_another_shape_can_stay_where_that_is_said_twice(tmp_path):
    model = nn.Sequential(OrderedDict(body=nn.Linear(3, 3), head=nn.Linear(3, 2)))
    state = {**model.state_dict(), "head.weight": torch.ones(9, 3), "head.bias": torch.ones(9)}
    with pytest.raises(MismatchError, match="2 of another shape"):
        loaded(tmp_path, state, model)
    with pytest.raises(CheckpointError, match=r"head\.weight, head\.bias"):
        loaded(tmp_path, state, model, ignore=["head.*"])
    notes = loaded(tmp_path, state, model, ignore=["head.*"], allow_uninitialised=True)
    assert notes == ["left as the model was built: head.weight, head.bias"]


def test_whole_numbers_that_the_model_computes_itself_need_no_allowance(tmp_path):
    model = nn.Linear(3, 2)
    model.register_buffer("position_ids", torch.arange(3))
    notes = loaded(tmp_path, nn.Linear(3, 2).state_dict(), model, ignore=["position_ids"])
    assert notes == ["ignored: position_ids"]


def test_a_model_on_the_meta_device_is_refused_and_the_advice_works(tmp_path):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    state = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()
    with pytest.raises(CheckpointError, match=r"0.weight of the model lies on the meta") as caught:
        loaded(tmp_path, state, model)
    advice = str(caught.value).partition("or call ")[2].partition(" first")[0]
    eval(advice, {"model": model})
    loaded(tmp_path, state, model)
    assert torch.equal(model[0].weight, state["0.weight"])


def test_a_model_of_inference_mode_is_refused(tmp_path):
    with torch.inference_mode():
        model = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"made under torch\.inference_mode"):
        loaded(tmp_path, nn.Linear(3, 2).state_dict(), model)
