"""Before torch 2.5 there are models in parts, with DTensors by another name: they are refused."""

import pytest
import torch
import torch.distributed.tensor
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from flatkit import Objective
from flatkit.checkpoints import load_parts
from flatkit.errors import InvalidArgumentError

pytestmark = pytest.mark.skipif(
    hasattr(torch.distributed.tensor, "DTensor"), reason="this torch has DTensors to be measured"
)


@pytest.fixture
def model():
    from torch.distributed._tensor import Shard, distribute_tensor  # pyright: ignore

    store = distributed.HashStore()  # pyright: ignore
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh, layer = init_device_mesh("cpu", (1,)), nn.Linear(2, 2, bias=False)
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
        yield layer
    finally:
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")
def test_a_checkpoint_for_its_parts_is_refused_and_the_model_kept(model, tmp_path):
    before = model.weight.to_local().clone()
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "weights.pt")
    with pytest.raises(InvalidArgumentError, match=r"needs torch 2\.5 or newer"):
        load_parts(tmp_path / "weights.pt", model)
    assert torch.equal(model.weight.to_local(), before)


@pytest.mark.filterwarnings("ignore:DTensor random operators:UserWarning")
def test_it_is_not_measured(model):
    samples = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(InvalidArgumentError, match=r"needs torch 2\.5 or newer"):
        Objective(model, "cross_entropy", samples)
