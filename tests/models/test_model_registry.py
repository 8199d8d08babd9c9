import pytest
import torch
from torch import nn

from flatkit.errors import InvalidArgumentError
from flatkit.models import MODELS
from flatkit.models.activations import ACTIVATIONS


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_an_mlp_equals_its_formula():
    model = MODELS.build("mlp", in_shape=(1, 2, 2), classes=3, hidden=(5, 6)).double()
    p = dict(model.named_parameters())
    x = torch.randn(7, 1, 2, 2, dtype=torch.float64)
    h = torch.tanh(x.reshape(7, 4) @ p["hidden1.weight"].T + p["hidden1.bias"])
    h = torch.tanh(h @ p["hidden2.weight"].T + p["hidden2.bias"])
    torch.testing.assert_close(model(x), h @ p["output.weight"].T + p["output.bias"])
    assert parameters(model) == (4 * 5 + 5) + (5 * 6 + 6) + (6 * 3 + 3)


def test_an_mlp_without_hidden_layers_is_linear_and_a_number_is_one_layer():
    assert parameters(MODELS.build("mlp", in_shape=(4,), classes=2, hidden=())) == 10
    assert parameters(MODELS.build("mlp", in_shape=(4,), classes=2, hidden=3)) == 15 + 8


@pytest.mark.parametrize("in_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("batchnorm", [True, False])
def test_a_cnn_takes_the_usual_image_sizes(in_shape, batchnorm):
    model = MODELS.build("cnn", in_shape=in_shape, classes=10, width=4, batchnorm=batchnorm)
    assert model(torch.zeros(2, *in_shape)).shape == (2, 10)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()) is batchnorm


def test_a_cnn_has_the_parameters_of_three_convolutions_and_a_linear_layer():
    model = MODELS.build("cnn", in_shape=(1, 8, 8), classes=10, width=16)
    convolutions = 9 * (1 * 16 + 16 * 32 + 32 * 64)
    assert parameters(model) == convolutions + 2 * (16 + 32 + 64) + 64 * 10 + 10


def test_a_cnn_halves_the_image_twice():
    model = MODELS.build("cnn", in_shape=(1, 8, 8), classes=10, width=2)
    features = model[:3](torch.zeros(1, 1, 8, 8))
    assert features.shape == (1, 8, 2, 2)


def test_the_linear_layer_of_a_cnn_sees_the_mean_of_each_field_of_its_pool():
    model = MODELS.build("cnn", in_shape=(1, 16, 16), classes=3, width=2, pool=2).eval()
    images = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    features = model[:3](images)  # [5, 8, 4, 4]
    fields = [features[:, :, i : i + 2, j : j + 2].mean(dim=(2, 3)) for i in (0, 2) for j in (0, 2)]
    flat = torch.stack(fields, dim=-1).reshape(5, 8 * 4)
    expected = flat @ model.output.weight.T + model.output.bias
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("side", [5, 14, 28])
def test_the_largest_pool_of_a_cnn_is_the_side_of_its_features(side):
    features = MODELS.build("cnn", in_shape=(1, side, 28), classes=3, width=2)[:3]
    left = features(torch.zeros(2, 1, side, 28)).shape[2]
    shape = {"in_shape": (1, side, 28), "classes": 3, "width": 2}
    assert MODELS.build("cnn", **shape, pool=left)(torch.zeros(2, 1, side, 28)).shape == (2, 3)
    with pytest.raises(InvalidArgumentError, match=f"pool must be at most {left}.*side {side}"):
        MODELS.build("cnn", **shape, pool=left + 1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_used(activation):
    model = MODELS.build("mlp", in_shape=(2,), classes=2, hidden=(3,), activation=activation)
    assert isinstance(model.activation1, ACTIVATIONS[activation])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mlp", {"hidden": (0,)}, "hidden must be a whole number >= 1"),
        ("mlp", {"hidden": (2.5,)}, "hidden must be a whole number"),
        ("mlp", {"activation": "tan"}, "did you mean 'tanh'"),
        ("mlp", {"classes": 0}, "classes"),
        ("cnn", {"in_shape": (8,)}, "cnn needs in_shape"),
        ("cnn", {"in_shape": (1, 2, 2)}, "sides of at least 4"),
        ("cnn", {"width": 0}, "width"),
        ("cnn", {"pool": 0}, "pool must be a whole number >= 1"),
    ],
)
def test_bad_arguments_are_named(name, kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        MODELS.build(name, **{"in_shape": (1, 8, 8), "classes": 3, **kwargs})
