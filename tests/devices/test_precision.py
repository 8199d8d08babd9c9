"""What the caller allows of float32 is put back, however it was set."""

from typing import Any

import pytest
import torch

from flatkit.devices.precision import full_float32


def told() -> list[object]:
    return [torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()]


@pytest.fixture(autouse=True)
def put_back():
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("convolve", [True, False])
@pytest.mark.parametrize("multiply", ["highest", "high", "medium"])
def test_settings_of_the_caller_come_back(convolve, multiply):
    torch.backends.cudnn.allow_tf32 = convolve
    torch.set_float32_matmul_precision(multiply)
    before = told()
    with pytest.raises(ZeroDivisionError), full_float32():
        assert told() == [False, "highest"]
        with torch.backends.cudnn.flags(enabled=False):
            pass
        raise ZeroDivisionError
    assert told() == before


def test_that_of_cuda_alone_comes_back():
    torch.backends.cuda.matmul.allow_tf32 = True
    with full_float32():
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="of torch 2.9 on")
def test_those_that_were_set_one_by_one_come_back_too():
    cudnn: Any = torch.backends.cudnn
    places = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    values = ["tf32", "ieee", "tf32"]
    for place, value in zip(places, values, strict=True):
        place.fp32_precision = value
    with full_float32():
        assert [place.fp32_precision for place in places] == ["ieee"] * 3
    assert [place.fp32_precision for place in places] == values
