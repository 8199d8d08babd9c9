"""Names and shapes of other programs: they are put right, or a table says how."""

import pytest
import torch
from torch import nn

from flatkit.checkpoints.placing import Stored, Wishes, place
from flatkit.errors import CheckpointError, InvalidArgumentError, MismatchError


def load_state(model, state, *, where, rename=None, ignore=()):
    return place(model, Stored("x.pt", state), Wishes(rename or {}, ignore), where=where)


def network(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, classes))


def trained() -> nn.Sequential:
    model = network()
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values(), start=1):
            tensor.fill_(number)
    return model


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def mismatch(model, state, **options) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MismatchError) as caught:
        load_state(model, state, where="x.pt and the model", **options)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])  # nothing was changed
    return str(caught.value)


def wrapped(kind: str) -> dict[str, torch.Tensor]:
    """Return the state of the trained network in a wrapper."""
    model = trained()
    if kind == "data parallel":
        return nn.DataParallel(model).state_dict()
    if kind == "compiled":
        return torch.compile(model, backend="eager").state_dict()  # type: ignore[union-attr]
    if kind == "compiled inside":
        model[3] = torch.compile(model[3], backend="eager")  # type: ignore[assignment]
        return model.state_dict()
    if kind == "averaged":
        return torch.optim.swa_utils.AveragedModel(model).state_dict()
    prefix = {"lightning": "model.", "three": "module._orig_mod.net.", "own": "backbone."}[kind]
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "kind",
    ["data parallel", "compiled", "compiled inside", "averaged", "lightning", "three", "own"],
)
def test_the_prefixes_of_wrappers_are_taken_off_and_said(kind):
    model = network()
    notes = load_state(model, wrapped(kind), where="x")
    assert_equal(model, trained())
    assert notes


def test_a_prefix_that_the_model_has_and_the_file_lacks_is_put_before():
    model = nn.Module()
    model.net = network()
    notes = load_state(model, trained().state_dict(), where="x")
    assert notes == ["with the prefix 'net.' put before"]
    assert_equal(model.net, trained())


def test_names_that_fit_are_not_touched():
    assert load_state(network(), trained().state_dict(), where="x") == []


def test_a_compiled_model_takes_plain_names():
    model = network()
    compiled = torch.compile(model, backend="eager")
    load_state(compiled, trained().state_dict(), where="x")  # type: ignore[arg-type]
    assert_equal(model, trained())


def test_tensors_that_differ_do_not_become_one():
    """torch takes the last of them for both, so that an untied model is loaded wrong."""
    one, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    tied = nn.Sequential(one, other)
    apart = {name: tensor.clone() for name, tensor in tied.state_dict().items()}
    other.weight = one.weight
    before = one.weight.clone()
    with pytest.raises(CheckpointError, match=r"0\.weight and 1\.weight differ in the file"):
        place(tied, Stored("a.pt", apart), where="a.pt and the model")
    assert torch.equal(one.weight, before)
    alike = {name: apart["0.weight"].clone() for name in apart}
    assert place(tied, Stored("a.pt", alike), where="a.pt and the model") == []
    assert torch.equal(other.weight, apart["0.weight"])


def test_of_tied_weights_one_is_enough():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    load_state(model, {"0.weight": torch.eye(3)}, where="x")
    assert torch.equal(model.state_dict()["1.weight"], torch.eye(3))
    apart = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    assert "missing  1.weight" in mismatch(apart, {"0.weight": torch.eye(3)})


def test_counters_of_batches_may_be_missing_and_running_means_may_not():
    state = trained().state_dict()
    del state["1.num_batches_tracked"]
    load_state(network(), state, where="x")
    del state["1.running_mean"]
    assert "missing  1.running_mean" in mismatch(network(), state)


def test_another_name_of_the_head_is_suggested_and_the_suggestion_works():
    state = dict(trained().state_dict())
    for part in ("weight", "bias"):
        state[f"classifier.{part}"] = state.pop(f"3.{part}")
    message = mismatch(network(), state)
    assert "is it classifier.weight in the file?" in message
    assert "try `rename` classifier.=3. (from Python: rename={'classifier.': '3.'})" in message
    model = network()
    load_state(model, state, where="x", rename={"classifier.": "3."})
    assert_equal(model, trained())


def test_of_several_tensors_of_one_shape_none_is_guessed():
    class Attention(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(2, 2))

    state = Attention("query", "key", "value").state_dict()
    message = mismatch(Attention("q", "k", "v"), state)
    assert "is it" not in message and "`rename`" not in message
    inside = {f"block.{name}": tensor for name, tensor in state.items()}
    inside["block.query.bias"] = inside.pop("block.query.bias")
    assert "`rename`" not in mismatch(Attention("q", "k", "v"), inside)


def test_what_is_beside_the_model_is_named_and_can_be_ignored():
    state = dict(trained().state_dict())
    state |= {"criterion.weight": torch.ones(3), "criterion.bias": torch.ones(1)}
    assert "`ignore` 'criterion.*'" in mismatch(network(), state)
    notes = load_state(network(), state, where="x", ignore=["criterion.*"])
    assert notes == ["ignored: criterion.weight, criterion.bias"]


@pytest.mark.parametrize(
    ("name", "shape", "hint"),
    [
        ("0.weight", (2, 4), "transposed"),
        ("3.weight", (10, 4), "build the model for 10 outputs (classes, words), not 3"),
        ("3.weight", (3, 8), "build the model for 8 inputs (channels, width), not 4"),
        ("3.weight", (3, 4, 1, 1), "dimensions of 1"),
        ("0.weight", (7, 9), "build the model with the widths of the file"),
        ("0.bias", (), "build the model with the widths of the file"),
    ],
)
def test_another_shape_comes_with_what_may_be_the_matter(name, shape, hint):
    state = dict(trained().state_dict())
    state[name] = torch.ones(shape)
    assert hint in mismatch(network(), state)


@pytest.mark.parametrize("prefix", ["", "shadow.", "arr_"])
def test_tensors_without_names_are_told_to_be_saved_by_name(prefix):
    tensors = [p.detach() for p in nn.Linear(2, 4).parameters()]
    state = {f"{prefix}{number}": tensor for number, tensor in enumerate(tensors)}
    message = mismatch(nn.Linear(2, 4), state)
    assert "without names, in number and shape those that are missing, in their order" in message
    assert "dict(zip(dict(model.named_parameters()), tensors))" in message
    assert "without names; save" in mismatch(network(), state)


def test_a_long_table_is_cut_and_counted():
    state = {f"other.{number}": torch.ones(1) for number in range(30)}
    message = mismatch(network(), state)
    assert "9 missing" not in message and "7 missing, 30 unexpected" not in message
    assert "... and 22 more" in message
    assert len(message.splitlines()) < 25


def test_wishes_that_concern_nothing_are_errors():
    state = trained().state_dict()
    with pytest.raises(InvalidArgumentError, match="no name in the file begins so"):
        load_state(network(), state, where="x", rename={"head.": "3."})
    with pytest.raises(InvalidArgumentError, match="matches no name"):
        load_state(network(), state, where="x", ignore=["head.*"])
    with pytest.raises(InvalidArgumentError, match=r"both 3\.weight"):
        load_state(network(), state, where="x", rename={"0.": "3."})


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("bfloat16", "bfloat16"), "bfloat16"),
        (("bfloat16", "float16"), "float32"),
        (("float16", "float64"), "float64"),
        (("float8_e5m2", "float8_e5m2"), "float32"),
    ],
)
def test_the_model_takes_a_precision_in_which_every_tensor_is_exact(dtypes, expected):
    model = nn.Linear(2, 2)
    first, second = (getattr(torch, name) for name in dtypes)
    state = {
        "weight": (torch.eye(2) / 3).to(torch.float32).to(first),
        "bias": (torch.ones(2) / 3).to(torch.float32).to(second),
    }
    load_state(model, state, where="x")
    assert model.weight.dtype == getattr(torch, expected)
    for name, tensor in state.items():
        assert torch.equal(model.state_dict()[name].double(), tensor.double())
