"""Two and three processes over gloo: the numbers of one, and of a dense float64 reference."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from tests.processes import finish, start

pytestmark = pytest.mark.distributed
Results = list[dict[str, Any]]
KINDS = ("one chunk", "chunks", "weights", "norm")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=[2, 3])
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
        assert found["few"].startswith("InvalidArgumentError: processes must be at most 1")
