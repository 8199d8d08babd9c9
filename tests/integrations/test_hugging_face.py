"""Short trainings by the Trainer of transformers, of a tiny BERT from a configuration."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from flatkit.errors import InvalidArgumentError
from flatkit.integrations.hugging_face import PerturbedTrainerMixin
from flatkit.optim import GAM, SAM
from tests.versions import before

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library, at import
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")  # of the library

OPTIMIZERS: dict[str, Any] = {
    "sam": lambda base, model: SAM(base, rho=0.1, model=model),
    "gam": lambda base, model: GAM(base, rho=0.1, model=model),
    "gam-exact": lambda base, model: GAM(
        base, rho=0.1, mode="exact", engine="central_difference", model=model
    ),
    "every": lambda base, model: GAM(base, rho=0.1, every=2, model=model),
    "adamw": lambda base, model: base,
}


FlatTrainer: Any = type("FlatTrainer", (PerturbedTrainerMixin, transformers.Trainer), {})


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=8, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def rows() -> list[dict[str, Any]]:
    """Sequences whose class is whether the token 3 begins them."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 20, (32, 6), generator=generator)
    labels = torch.arange(32) % 2
    tokens[labels == 1, 0] = 3
    return [{"input_ids": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]


def base(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=5e-3)


def sum_over_batch(outputs, labels, num_items_in_batch):
    """Return the part of the mean over the effective batch that these samples make up."""
    total = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / num_items_in_batch


def fit(kind: str, tmp_path, *, loss: Any = None, **settings: Any):
    model = bert()
    settings = {"per_device_train_batch_size": 8, "num_train_epochs": 2, **settings}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_steps=1, lr_scheduler_type="constant", seed=3, **settings,
    )  # fmt: skip
    trainer = FlatTrainer(
        model, arguments, train_dataset=rows(), compute_loss_func=loss,
        optimizers=(OPTIMIZERS[kind](base(model), model), None),
    )  # fmt: skip
    trainer.train()
    return trainer


def met(tmp_path, **settings: Any) -> list[dict[str, torch.Tensor]]:
    """Return the batches in the order in which the trainer of the same seed takes them."""
    seen: list[dict[str, torch.Tensor]] = []

    class Looking(transformers.Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append({key: value.clone() for key, value in inputs.items()})
            return super().training_step(model, inputs, *args, **kwargs)

    model = bert()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="no", lr_scheduler_type="constant", seed=3, num_train_epochs=2,
        per_device_train_batch_size=8, **settings,
    )  # fmt: skip
    Looking(model, arguments, train_dataset=rows()).train()
    return seen


def by_hand(kind: str, batches, max_norm: float = 1.0) -> tuple[nn.Module, list[float]]:
    """The same training in a plain loop."""
    model = bert()
    optimizer = OPTIMIZERS[kind](base(model), model)
    losses = []
    for batch in batches:
        if kind == "adamw":
            optimizer.zero_grad()
            model(**batch).loss.backward()
        else:
            for visit in optimizer.phases():
                loss = model(**batch).loss
                loss.backward()
                if visit.number == 0:
                    losses.append(loss.item())
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    return model, losses


@pytest.mark.long
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_trainer_reaches_the_same_weights_as_a_plain_loop(tmp_path, kind):
    trainer = fit(kind, tmp_path)
    expected, losses = by_hand(kind, met(tmp_path))
    for (name, ours), theirs in zip(
        trainer.model.named_parameters(), expected.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == 8
    if losses:
        assert logged == pytest.approx(losses, abs=1e-3)


def test_accumulated_parts_are_one_batch_with_one_perturbation(tmp_path):
    if before(transformers, 4, 46, 1):
        pytest.skip("this transformers counts one label too few in each part")
    whole = fit("gam", tmp_path, loss=sum_over_batch)
    halves = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    parts = fit("gam", tmp_path, loss=sum_over_batch, **halves)
    assert parts.state.global_step == whole.state.global_step == 8
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    losses = [
        [row["loss"] for row in trainer.state.log_history if "loss" in row]
        for trainer in (whole, parts)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_it_learns_also_in_bfloat16(tmp_path):
    trainer = fit("gam", tmp_path, bf16=True, num_train_epochs=8)
    tokens = torch.stack([row["input_ids"] for row in rows()])
    labels = torch.stack([row["labels"] for row in rows()])
    with torch.no_grad():
        predicted = trainer.model.eval()(input_ids=tokens).logits.argmax(1)
    assert (predicted == labels).double().mean() > 0.9


def test_a_checkpoint_of_the_trainer_goes_on_where_it_was(tmp_path):
    settings = {"save_strategy": "epoch", "num_train_epochs": 3}
    model = bert()
    whole = fit("gam", tmp_path / "whole", num_train_epochs=3)

    def trainer():
        model = bert()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "run"), use_cpu=True, report_to=[], disable_tqdm=True,
            lr_scheduler_type="constant", seed=3, per_device_train_batch_size=8, **settings,
        )  # fmt: skip
        return FlatTrainer(
            model, arguments, train_dataset=rows(),
            optimizers=(OPTIMIZERS["gam"](base(model), model), None),
        )  # fmt: skip

    trainer().train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not any(
        torch.equal(a, b) for a, b in zip(model.parameters(), whole.model.parameters(), strict=True)
    )


def test_loss_scaling_is_refused_before_a_step(tmp_path):
    model = bert()
    optimizer = OPTIMIZERS["sam"](base(model), model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="no", per_device_train_batch_size=8,
    )  # fmt: skip
    trainer = FlatTrainer(model, arguments, train_dataset=rows(), optimizers=(optimizer, None))
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")  # what fp16 sets on a GPU
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InvalidArgumentError, match=r"fp16 scales the loss.*use bf16"):
        trainer.train()
    assert all(map(torch.equal, before, model.parameters()))
