"""Two and three processes over gloo: the numbers of one, and of a dense float64 reference."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.devices import sharded_models
from tests.devices.ports import free_port
from tests.devices.ranks_worker import (
    CLASSES,
    INPUTS,
    WIDTH,
    data,
    everything,
    network,
    vectors,
    work,
)
from tests.devices.sharded_models import analysis, passes
from tests.processes import finish, start

pytestmark = [pytest.mark.long, pytest.mark.distributed]
Results = list[dict[str, Any]]
KINDS = ("one chunk", "chunks", "weights", "norm")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Results]:
    """What the processes found."""
    count, folder, port = request.param, tmp_path_factory.mktemp("ranks"), free_port()
    finish([start(work, rank, count, port, folder) for rank in range(count)])
    yield [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def close(found: Any, expected: Any, where: str = "", *, rel: float = 1e-10) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=f"{where}: {found}")
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            close(found[name], expected[name], f"{where} {name}", rel=rel)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, f"{where} {number}", rel=rel)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-2 * rel, nan_ok=True), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("kind", KINDS)
def test_every_pass_gives_and_counts_what_one_process_does(results, alone, kind):
    for found in results:
        close(found[kind], alone[kind])


@pytest.mark.parametrize("kind", [*KINDS, "surface"])
def test_all_ranks_have_the_same_bits(results, kind):
    def bits(found: Any) -> Any:
        if isinstance(found, dict):
            return {name: bits(part) for name, part in found.items() if name != "here"}
        return found.tolist() if isinstance(found, Tensor) else found

    assert all(bits(found[kind]) == bits(results[0][kind]) for found in results)


def dense_loss(theta: Tensor, *, weighted: bool) -> Tensor:
    x, y = data()
    sizes = [INPUTS * WIDTH, WIDTH, WIDTH * CLASSES, CLASSES]
    first, bias, last, end = theta.split(sizes)
    hidden = torch.tanh(x @ first.view(WIDTH, INPUTS).T + bias)
    logs = (hidden @ last.view(CLASSES, WIDTH).T + end).log_softmax(1)
    weights = torch.tensor([0.2, 1.0, 3.0] if weighted else [1.0] * 3, dtype=torch.float64)[y]
    return -(weights * logs[torch.arange(len(y)), y]).sum() / weights.sum()


@pytest.mark.parametrize("kind", ["one chunk", "chunks", "weights"])
def test_losses_gradients_and_products_are_those_of_the_dense_hessian(results, kind):
    theta = nn.utils.parameters_to_vector(network().parameters()).detach()

    def loss(point: Tensor) -> Tensor:
        return dense_loss(point, weighted=kind == "weights")

    hessian: Any = torch.autograd.functional.hessian(loss, theta)
    gradient: Any = torch.autograd.functional.jacobian(loss, theta)
    v = vectors(len(theta))
    for found in (result[kind] for result in results):
        assert found["loss"] == pytest.approx(float(loss(theta)), rel=1e-12)
        close(found["gradient"], gradient)
        for engine in ("layers", "double_backward"):
            close(found[f"{engine}: product"], hessian @ v[0])
            close(found[f"{engine}: products"], v @ hessian)


def test_bfloat16_has_the_truth_within_its_bars_on_every_rank(results):
    theta = nn.utils.parameters_to_vector(network().parameters()).detach()

    def loss(point: Tensor) -> Tensor:
        return dense_loss(point, weighted=False)

    hessian: Any = torch.autograd.functional.hessian(loss, theta)
    gradient: Any = torch.autograd.functional.jacobian(loss, theta)
    truth = {
        "loss": float(loss(theta)),
        "gradient_norm": float(gradient.norm()),
        "top_eigenvalues": float(torch.linalg.eigvalsh(hessian)[-1]),
    }
    for found in results:
        assert found["bfloat16"] == results[0]["bfloat16"]
        for name, (value, error) in found["bfloat16"].items():
            assert 0 < abs(value - truth[name]) <= error, name


def test_a_product_sends_one_all_reduce_of_p_numbers_and_a_few(results):
    for found in results:
        sent, size = found["bytes"]
        assert size <= sent <= size + 16 * len(results)


def test_searches_of_which_each_rank_keeps_a_part_find_what_one_process_does(results, alone):
    expected = alone["searches"]
    assert expected["restarts"] > 4
    for found in (result["searches"] for result in results):
        for name in ("restarted", "both ends", "warm", "block", "scaled", "gauss-newton"):
            close(found[name]["values"], expected[name]["values"], name)
            torch.testing.assert_close(
                found[name]["projectors"], expected[name]["projectors"], rtol=0, atol=1e-7
            )
        close(found["deflation"][:2], expected["deflation"][:2])
        torch.testing.assert_close(
            found["deflation"][2], torch.eye(len(found["deflation"][2])).double()
        )
        for one, other in zip(found["spaces"], expected["spaces"], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
        close(found["density"], expected["density"], rel=1e-8)


def test_eigenvalues_of_parts_are_those_of_the_dense_hessian(results):
    theta = nn.utils.parameters_to_vector(network().parameters()).detach()
    hessian: Any = torch.autograd.functional.hessian(
        lambda point: dense_loss(point, weighted=False), theta
    )
    values = torch.linalg.eigvalsh(hessian)
    largest, ends = values.flip(0)[:2], values[[-1, 0]]
    scaled = torch.linalg.eigvalsh(theta.abs()[:, None] * hessian * theta.abs()).flip(0)[:2]
    for found in (result["searches"] for result in results):
        for name in ("restarted", "warm", "block"):
            close(found[name]["values"], largest)
        close(found["both ends"]["values"], ends)
        close(found["scaled"]["values"], scaled)


def test_a_step_of_lanczos_sends_one_all_reduce_of_p_numbers_and_few_sums(results):
    count = len(results)
    for told in (found["bytes of a search"] for found in results):
        padded = count * -(-told["size"] // count)
        assert told["vectors"] <= 2 * (count - 1) * 8 * (padded // count + 16)
        assert told["calls"] <= 10 and told["sums"] < 1000
        assert told["told"] == told["vectors"] + told["sums"]


def test_each_rank_keeps_its_part_of_the_basis(results):
    for told in (found["bytes of a search"] for found in results):
        model = told["rows"] * 8 * told["size"] / len(results)
        assert told["kept"] == pytest.approx(model, rel=0.1)


def values_of(report: dict[str, Any]) -> list[Any]:
    return [[r["measure"], r["value"], r["status"]] for r in report["results"]]


@pytest.mark.parametrize("name", ["analysis", "kept", "again"])
def test_an_analysis_is_that_of_one_process_also_from_the_journal(results, alone, name):
    expected = values_of(alone["analysis"])
    for found in results:
        for one, other in zip(values_of(found[name]), expected, strict=True):
            assert one[0] == other[0] and one[2] == other[2]
            close(one[1], other[1], one[0], rel=1e-6)
        spent = found[name]["analysis"]["gradients"]
        assert spent == pytest.approx(alone["analysis"]["analysis"]["gradients"], abs=4)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """What is found of the model that no rank has in parts."""
    return {**passes(network()), "report": analysis(network())}


@pytest.fixture(params=sharded_models.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_model_in_parts_has_the_loss_gradient_and_products_of_the_whole(results, whole, kind):
    exact = 1e-10 if kind == "DTensor" else 1e-7
    for found in (result["models"][kind] for result in results):
        for name in ("loss", "evaluated", "gradient", "moved"):
            close(found[name], whole[name], name)
        for name in ("product", "products"):
            torch.testing.assert_close(found[name], whole[name], rtol=exact, atol=exact)
        assert all(found["untouched"])
        # Through the hooks of `fully_shard` the gradient of θ would be zero.
        assert found["differentiable"] == (kind == "DTensor") and whole["differentiable"]
        checks = {**whole["checks"], "complete": None}
        assert found["checks"] == checks


def test_products_in_parts_are_exact_where_every_operation_is_covered(results, kind):
    for found in (result["models"][kind]["settings"] for result in results):
        assert found["engine"] == sharded_models.ENGINES[kind]
        if len(results) == 3:  # where it is given, not chosen
            continue
        assert "in parts" in found["engines_rejected"]["layers"]
        if kind == "fully_shard":
            assert "no second derivative" in found["engines_rejected"]["double_backward"]
            assert 0 < found["engine_error"] < 1e-7


def test_products_in_parts_are_within_the_error_that_is_said(results, kind):
    theta = nn.utils.parameters_to_vector(network().parameters()).detach()
    hessian: Any = torch.autograd.functional.hessian(
        lambda point: dense_loss(point, weighted=False), theta
    )
    v = vectors(len(theta))[0]
    truth, values = hessian @ v, torch.linalg.eigvalsh(hessian)[-1:]
    for found in (result["models"][kind] for result in results):
        if len(results) == 2:  # where the engine was chosen, and its error measured
            said = max(found["settings"]["engine_error"], 1e-13)
            assert float((found["product"] - truth).norm() / truth.norm()) <= said
        assert bool(((found["eigenvalues"] - values).abs() <= found["error"] + 1e-14).all())


@pytest.mark.parametrize("name", ["report", "again"])
def test_an_analysis_of_a_model_in_parts_is_that_of_the_whole(results, whole, kind, name):
    models = [result["models"][kind] for result in results]
    for found in (model[name] for model in models if name in model):  # two ranks are enough
        for one, other in zip(values_of(found), values_of(whole["report"]), strict=True):
            assert one[0] == other[0]
            close(one[1], other[1], one[0], rel=1e-4)
    assert all((model[name]["made"] == 0) == (name == "again") for model in models if name in model)


def test_checkpoints_load_part_by_part(results, kind):
    for found in (result["models"][kind]["loaded"] for result in results):
        assert found["all"] and found["one"] and found["kept"]
        for name in ("all: read", "one: read"):
            read, held = found[name]
            # Columns of a tensor that is cut across lie in rows; else only what is held is read.
            assert read <= held or kind == "DTensor"
        assert "the file lacks" in found["wrong"] or "shape" in found["wrong"]


def test_what_cannot_be_measured_in_parts_is_refused_in_words(results, kind):
    models = [result["models"][kind] for result in results]
    for found in (model["refusals"] for model in models if "refusals" in model):
        assert "inside `with flatkit.devices.joining.joined():`" in found["alone"]
        assert "in place, in torch.float64" in found["dtype"]
        assert "use batchnorm='eval'" in found["batchnorm"]
        assert "in parts on several ranks" in found["layers"]
        assert "on the meta device" in found["meta"]
        assert "all of them float32 or all float64" in found["mixed"]
        if kind == "fully_shard":
            assert "fully_shard has no second derivative" in found["twice"]
            assert "shard the model by DTensors" in found["gauss-newton"]
            assert found["no rule"] == ""
        else:
            assert found["twice"] == found["gauss-newton"] == found["fisher"] == ""
            assert "cdist" in found["no rule"] and "\n" not in found["no rule"]


def test_a_search_goes_on_with_another_number_of_ranks(results):
    for found in (result["moved"] for result in results):
        for journal in ("one", "all"):
            runs = found[journal]
            assert runs[-1][1] == runs[0][1] >= 25  # as many products asked for
            torch.testing.assert_close(runs[-1][2], runs[0][2], rtol=1e-5, atol=0)
        assert results[0]["moved"]["one"][0][0] >= 25 and found["all"][0][0] >= 25
        assert found["one"][-1][0] == 0  # and none made again
    assert results[0]["moved"]["all"][-1][0] == 0


def test_points_are_measured_once_by_whichever_rank_is_free(results, alone):
    for name in ("surface", "refined", "journal"):
        measured = [tuple(point) for found in results for point in found[name]["here"]]
        assert sorted(measured) == sorted(map(tuple, alone[name]["here"]))
        for found in results:
            close(found[name]["values"], alone[name]["values"])
            assert found[name]["cost"] == alone[name]["cost"]
    assert sum(bool(found["surface"]["here"]) for found in results) > 1


def test_points_of_a_journal_are_not_measured_again(results):
    for found in results:
        assert found["journal again"]["here"] == []
        close(found["journal again"]["values"], found["surface"]["values"])


def test_where_one_rank_fails_all_say_why(results):
    for found in (result["failures"] for result in results):
        for what in ("loss", "gradient", "product"):
            assert found[what].startswith("UserCodeError") and "no such class" in found[what]
        assert found["handed out"] == "FlatkitError: not this one"
        assert "ZeroDivisionError" in found["first"]


def test_ranks_of_other_data_or_settings_and_idle_ones_are_refused(results):
    for found in (result["failures"] for result in results):
        assert found["data"].startswith("RankError: rank 1 of") and "its samples" in found["data"]
        assert "differs from rank 0 in rho" in found["settings"]
        assert not found["numbered"]
        assert "differs from rank 0 in the loss of the same samples" in found["scaled"]
        assert found["few"].startswith("InvalidArgumentError: processes must be at most 1")
