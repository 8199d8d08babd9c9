"""A ResNet with the names and shapes of torchvision's, from its .pth to the top eigenvalue.

torchvision and timm are not among the test packages; their files are plain state dicts.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flatkit
from flatkit.errors import MismatchError
from tests.libraries.reference import top_eigenvalue


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, named as in torchvision."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet(nn.Module):
    """A stem, four stages of one block, a pool and a head."""

    def __init__(self, classes: int = 3, width: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 2 * width, 2))
        self.layer4 = nn.Sequential(BasicBlock(2 * width, 3 * width, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(3 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 3, 32, 32, generator=generator), torch.arange(12) % 3


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ResNet()
    for _ in range(3):  # running statistics of these pictures
        model(data()[0])
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "arch": "resnet", "state_dict": state}, tmp_path / "best.pth.tar")
    return tmp_path / "best.pth.tar", model.eval()


def test_from_a_training_checkpoint_to_the_top_eigenvalue(saved):
    file, model = saved
    fresh = ResNet()
    assert flatkit.load(file).load_into(fresh) == ["with the prefix 'module.' taken off"]
    report = flatkit.analyze(
        fresh,
        nn.CrossEntropyLoss(),
        data(),
        measures=["top_eigenvalues"],
        dtype="float64",
        tolerance=1e-6,
    )
    x, y = data()
    expected = top_eigenvalue(model.double(), lambda net: F.cross_entropy(net(x.double()), y))
    assert report.result("top_eigenvalues").value[0] == pytest.approx(expected, rel=1e-5)


def test_a_head_for_other_classes_is_named(saved):
    with pytest.raises(MismatchError, match="build the model for 3 outputs"):
        flatkit.load(saved[0]).load_into(ResNet(classes=10))
