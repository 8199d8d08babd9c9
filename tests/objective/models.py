"""Models that compute otherwise than by a plain forward pass of plain layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed(nn.Module):
    """Computes its body again in the backward pass."""

    def __init__(
        self, *, reentrant: bool = False, nested: bool = False, bare: bool = True, on: bool = True
    ) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 3)
        self.reentrant, self.nested, self.bare, self.on = reentrant, nested, bare, on

    def plain(self) -> nn.Module:
        """Return the same function without checkpoints."""
        other = Checkpointed(bare=self.bare, on=False)
        other.load_state_dict(self.state_dict())
        return other.to(self.head.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.bare else self.first(x)
        return self.head(self.again(self.inner, x) if self.on else self.body(x))

    def inner(self, x: Tensor) -> Tensor:
        return self.again(self.body, x) if self.nested else self.body(x)

    def again(self, function, x: Tensor) -> Tensor:
        return checkpoint(function, x, use_reentrant=self.reentrant)


class Encoder(nn.Module):
    """Reads all places of a padded sequence: torch's fused path writes zeros at padded ones."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.body(x, src_key_padding_mask=mask).mean(1))


class FrozenEncoder(Encoder):
    """Trains its head alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body.requires_grad_(False)


class Attending(nn.Module):
    """Attention with padding, without an encoder around it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, key_padding_mask=mask)[0].mean(1))


def _small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


class Residual(nn.Module):
    """Δu + u of a network u."""

    def __init__(self) -> None:
        super().__init__()
        self.u = _small()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        u = self.u(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return bend.sum(1, keepdim=True) + u


class Forces(nn.Module):
    """−∇ of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = _small()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


class GradientPenalty(nn.Module):
    """An output and the length of its slope."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = _small()

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        out = self.critic(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out + (slope.square().sum(1, keepdim=True) + 1e-3).sqrt()


class Learning(nn.Module):
    """A step of gradient descent on its own weights within its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        inner = (F.linear(x, weight).tanh() - 0.5).square().sum(1)
        # A step on fixed samples, so that no sample depends on another.
        fixed = torch.linspace(-1, 1, 12, dtype=x.dtype).view(3, 4)
        (slope,) = torch.autograd.grad(
            F.linear(fixed, weight).square().sum(), weight, create_graph=True
        )
        return F.linear(x, weight - 0.1 * slope, self.layer.bias) + inner[:, None]


class Telling(nn.Module):
    """Takes another path where gradients are off, or are not asked for, as fused kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        on = torch.is_grad_enabled() and self.layer.weight.requires_grad and out.requires_grad
        return out if on else out + 0.1


class Cutting(nn.Module):
    """An embedding by the function, whose gradient may be sparse."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table, self.sparse = nn.Parameter(torch.randn(3, 3)), sparse

    def plain(self) -> nn.Module:
        """Return the same function with dense gradients."""
        other = Cutting(sparse=False)
        other.load_state_dict(self.state_dict())
        return other.double()

    def forward(self, items: Tensor) -> Tensor:
        return F.embedding(items, self.table, sparse=self.sparse).tanh()
