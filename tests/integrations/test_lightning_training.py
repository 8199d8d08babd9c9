"""Short trainings by Lightning itself."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from flatkit.errors import InvalidArgumentError
from flatkit.integrations.lightning import PerturbedModuleMixin
from flatkit.optim import ASAM, GAM, GSAM, SAM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library, at import
    lightning: Any = pytest.importorskip("lightning.pytorch")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library, about loaders and workers

OPTIMIZERS: dict[str, Any] = {
    "sam": lambda base, model: SAM(base, rho=0.1, model=model),
    "asam": lambda base, model: ASAM(base, model=model),
    "gsam": lambda base, model: GSAM(base, model=model),
    "gam": lambda base, model: GAM(base, rho=0.1, model=model),
    "gam-sam": lambda base, model: GAM(base, rho=0.1, oracle="sam", model=model),
    "gam-exact": lambda base, model: GAM(
        base, rho=0.1, mode="exact", engine="central_difference", model=model
    ),
    "every": lambda base, model: GAM(base, rho=0.1, every=2, model=model),
    "sgd": lambda base, model: base,
}


class Net(PerturbedModuleMixin, lightning.LightningModule):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 2))
        self.seen: list[float] = []

    def training_step(self, batch, index) -> Any:
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.net(inputs), targets)
        self.seen.append(loss.item())
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"twice": 2 * loss}, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        base = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return OPTIMIZERS[self.kind](base, self)


def data(samples: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 5, generator=generator)
    return inputs, (inputs.sum(1) > 0).long()


def loader(samples: int = 64):
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data(samples)), batch_size=16, shuffle=False
    )


def fit(model, tmp_path, *, epochs: int = 1, **settings: Any):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, **settings}
    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip
    trainer.fit(model, loader())
    return trainer


def by_hand(kind: str, epochs: int) -> tuple[nn.Module, list[float]]:
    """The same training in a plain loop."""
    model = Net(kind).net
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = OPTIMIZERS[kind](base, model)
    inputs, targets = data()
    losses = []
    for _ in range(epochs):
        for rows in torch.arange(64).split(16):

            def closure(rows=rows):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
                loss.backward()
                return loss

            losses.append(float(optimizer.step(closure)))
    return model, losses


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_lightning_trains_to_the_same_weights_and_statistics_as_a_plain_loop(tmp_path, kind):
    model = Net(kind)
    fit(model, tmp_path, epochs=3)
    expected, losses = by_hand(kind, 3)
    for (name, ours), theirs in zip(
        model.net.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)
    assert model.net[1].num_batches_tracked == 12
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["sam", "gam"])
def test_what_is_logged_is_the_loss_at_the_weights_as_they_are(tmp_path, kind):
    model = Net(kind)
    trainer = fit(model, tmp_path)
    _, losses = by_hand(kind, 1)
    mean = sum(losses) / 4
    assert trainer.callback_metrics["loss_epoch"].item() == pytest.approx(mean, rel=1e-5)
    assert trainer.callback_metrics["loss_step"].item() == pytest.approx(losses[-1], rel=1e-5)
    assert trainer.callback_metrics["twice"].item() == pytest.approx(2 * mean, rel=1e-5)
    assert len(model.seen) == 4 * {"sam": 2, "gam": 4}[kind]
    assert trainer.global_step == 4


def test_bfloat16_learns(tmp_path):
    model = Net("gam")
    fit(model, tmp_path, epochs=10, precision="bf16-mixed")
    inputs, targets = data()
    assert (model.eval().net(inputs).argmax(1) == targets).double().mean() > 0.9


def test_a_checkpoint_of_lightning_goes_on_where_it_was(tmp_path):
    whole = Net("gam")
    fit(whole, tmp_path / "whole", epochs=4)
    first = Net("gam")
    trainer = fit(first, tmp_path / "first", epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = Net("gam")
    again = lightning.Trainer(
        max_epochs=4, default_root_dir=tmp_path, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    again.fit(second, loader(), ckpt_path=tmp_path / "half.ckpt")
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def scaled() -> Any:
    from lightning.pytorch.plugins.precision import MixedPrecision

    return [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches must be 1, got 2"),
        ({"gradient_clip_val": 1.0}, "gradient_clip_val must be None, got 1.0.*max_norm"),
        ({"plugins": scaled}, "precision 16-mixed scales the loss.*bf16-mixed"),
    ],
)
def test_what_lightning_cannot_do_right_is_refused_before_a_step(tmp_path, asked, message):
    settings: Any = {key: value() if callable(value) else value for key, value in asked.items()}
    model = Net("sam")
    with pytest.raises(InvalidArgumentError, match=message):
        fit(model, tmp_path, **settings)
    assert not model.seen
    if "plugins" not in settings:
        fit(Net("sgd"), tmp_path, **settings)  # which is none of our business


class ByHand(Net):
    """Manual optimization: accumulation over two halves, by phases."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.automatic_optimization = False

    def training_step(self, batch, index) -> Any:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        inputs, targets = batch
        for _ in optimizer.phases():
            for rows in (slice(0, 8), slice(8, 16)):
                loss = nn.functional.cross_entropy(self.net(inputs[rows]), targets[rows]) / 2
                self.manual_backward(loss)
        optimizer.step()


def test_manual_optimization_loops_over_phases_with_the_batch_in_parts(tmp_path):
    model = ByHand("gam")
    model.net[1] = nn.Identity()  # BatchNorm would see halves
    fit(model, tmp_path, epochs=2)
    expected = Net("gam")
    expected.net[1] = nn.Identity()
    fit(expected, tmp_path, epochs=2)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
