"""Published architectures in small sizes, with the idioms of their papers' and authors' code.

Each is a few hundred to a few thousand weights: the tests and `benchmarks/architectures.py` hold
products with their Hessians against torch's double backward.
"""

# torch types what a module holds as Tensor | Module.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES, CLASSES, WORDS = 5, 3, 11


class Architecture(NamedTuple):
    """A network and what it takes: images [C, H, W], rows [T, D], words [T] or points [3, T]."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    of_words: bool = False

    def inputs(self, samples: int = SAMPLES) -> Tensor:
        """Draw inputs of so many samples; word 0 is padding."""
        if not self.of_words:
            return torch.randn(samples, *self.shape, dtype=torch.float64)
        words = torch.randint(1, WORDS, (samples, *self.shape))
        words[::2, -2:] = 0
        return words


def conv(into: int, out: int, size: int, activation: nn.Module | None = None, **more: Any) -> Any:
    """Return a convolution that keeps the size at stride 1, a BatchNorm and an activation."""
    layer = nn.Conv2d(into, out, size, padding=size // 2, bias=False, **more)
    return nn.Sequential(layer, nn.BatchNorm2d(out), activation or nn.ReLU(inplace=True))


class LeNet(nn.Module):
    """LeCun et al. (1998), as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3)
        self.fc1, self.fc2 = nn.Linear(16, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2, stride=1)
        x = x.view(-1, self.num_flat_features(x))
        x = F.dropout(F.relu(self.fc1(x)), training=self.training)
        return self.fc2(x)

    def num_flat_features(self, x: Tensor) -> int:
        count = 1
        for size in x.size()[1:]:
            count *= size
        return count


class VGG(nn.Module):
    """Simonyan and Zisserman (2015), with torchvision's pooling and classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)),
            *(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            *(nn.Linear(16, 6), nn.ReLU(True), nn.Dropout(), nn.Linear(6, CLASSES)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


class SqueezeNet(nn.Module):
    """Iandola et al. (2016): fire modules, a convolution for a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True)
        )
        self.squeeze = nn.Conv2d(4, 2, 1)
        self.one, self.three = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 3, padding=1)
        self.head = nn.Conv2d(6, CLASSES, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.squeeze(self.stem(x)))
        x = torch.cat([self.act(self.one(x)), self.act(self.three(x))], 1)
        x = F.adaptive_avg_pool2d(self.act(self.head(x)), 1)
        return x.view(x.size(0), CLASSES)


class Inception(nn.Module):
    """Szegedy et al. (2015): branches joined, one with pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(2, 3, 1)
        self.b = nn.Sequential(conv(2, 2, 1), conv(2, 3, 3))
        self.c = nn.Sequential(conv(2, 2, 1), conv(2, 2, 5))
        self.d = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(2, 2, 1))
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.a(x), self.b(x), self.c(x), self.d(x)]
        x = torch.cat(branches, dim=1)
        x = F.avg_pool2d(x, kernel_size=x.size()[2:])
        return self.head(x.squeeze(-1).squeeze(-1))


class Residual(nn.Module):
    """He et al. (2016), ResNeXt (Xie et al., 2017) with groups: a block with a projection."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.stem = conv(2, 4, 3)
        self.inner = nn.Sequential(
            *(conv(4, 4, 1), conv(4, 4, 3, stride=2, groups=groups)),
            *(nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.inner(x)
        out += self.shortcut(x)
        out = self.relu(out)
        out = F.avg_pool2d(out, out.size()[3])
        return self.fc(out.view(out.size(0), -1))


class WideResNet(nn.Module):
    """Zagoruyko and Komodakis (2016): activations before the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norm1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, 1, 1, bias=False)
        self.short, self.norm3 = nn.Conv2d(3, 6, 1, 2, bias=False), nn.BatchNorm2d(6)
        self.relu, self.fc, self.drop = nn.ReLU(inplace=True), nn.Linear(6, CLASSES), 0.3
        self.channels = 6

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.stem(x)))
        out = self.relu(self.norm2(self.conv1(x)))
        if self.drop > 0:
            out = F.dropout(out, p=self.drop, training=self.training)
        out = torch.add(self.short(x), self.conv2(out))
        out = F.avg_pool2d(self.relu(self.norm3(out)), 3)
        return self.fc(out.view(-1, self.channels))


class DenseNet(nn.Module):
    """Huang et al. (2017): every layer takes all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3 + 2 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(3))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(9), nn.ReLU(inplace=True), nn.Conv2d(9, 4, 1), nn.AvgPool2d(2, stride=2)
        )
        self.last, self.classifier = nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        x = F.relu(self.last(self.transition(torch.cat(features, 1))), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class InvertedResidual(nn.Module):
    """Sandler et al. (2018): MobileNet v2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(2, 4, 3, nn.ReLU6(inplace=True), stride=2)
        self.block = nn.Sequential(
            *(conv(4, 8, 1, nn.ReLU6(inplace=True)),),
            *(conv(8, 8, 3, nn.ReLU6(inplace=True), groups=8),),
            *(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.classifier(x.mean([2, 3]))


class SqueezeExcitation(nn.Module):
    """Hu et al. (2018): the channels weighted by a small network."""

    def __init__(self, channels: int, gate: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.pool, self.gate, self.activation = nn.AdaptiveAvgPool2d(1), gate, activation
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.activation(self.down(self.pool(x)))))


class MobileNetV3(nn.Module):
    """Howard et al. (2019): hard swish and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(2, 4, 3, nn.Hardswish(inplace=True), stride=2)
        self.expand = conv(4, 6, 1, nn.Hardswish(inplace=True))
        self.depthwise = conv(6, 6, 3, nn.Identity(), groups=6)
        self.excite = SqueezeExcitation(6, nn.Hardsigmoid(), nn.ReLU())
        self.project = conv(6, 4, 1, nn.Identity())
        self.classifier = nn.Sequential(nn.Linear(4, 5), nn.Hardswish(), nn.Linear(5, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(F.hardswish(self.excite(self.depthwise(self.expand(x)))))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class EfficientNet(nn.Module):
    """Tan and Le (2019): squeeze-and-excitation, SiLU, padding as TensorFlow's, depth dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, bias=False)
        self.norm, self.swish = nn.BatchNorm2d(4), nn.SiLU(inplace=True)
        self.expand = conv(4, 6, 1, nn.SiLU(inplace=True))
        self.depthwise = conv(6, 6, 3, nn.SiLU(inplace=True), groups=6)
        self.excite = SqueezeExcitation(6, nn.Sigmoid(), nn.SiLU(inplace=True))
        self.project = conv(6, 4, 1, nn.Identity())
        self.fc, self.rate = nn.Linear(4, CLASSES), 0.2

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.norm(self.stem(self.padded(x))))
        x = self.dropped(self.project(self.excite(self.depthwise(self.expand(x))))) + x
        return self.fc(x.mean((-1, -2)))

    def padded(self, x: Tensor) -> Tensor:
        """Pad as TensorFlow's 'same', whose sides differ."""
        height, width = x.size()[-2:]
        need_h = max((math.ceil(height / 2) - 1) * 2 + 3 - height, 0)
        need_w = max((math.ceil(width / 2) - 1) * 2 + 3 - width, 0)
        if need_h > 0 or need_w > 0:
            x = F.pad(x, [need_w // 2, need_w - need_w // 2, need_h // 2, need_h - need_h // 2])
        return x

    def dropped(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype) < 1 - self.rate
        return x / (1 - self.rate) * keep


class ShuffleNet(nn.Module):
    """Ma et al. (2018): half of the channels pass, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(2, 6, 3)
        self.branch = nn.Sequential(
            conv(3, 3, 1), conv(3, 3, 3, nn.Identity(), groups=3), conv(3, 3, 1)
        )
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, dim=1)
        out = self.shuffled(torch.cat((first, self.branch(second)), dim=1), 2)
        return self.fc(out.mean([2, 3]))

    def shuffled(self, x: Tensor, groups: int) -> Tensor:
        batch, channels, height, width = x.data.size()
        x = x.view(batch, groups, channels // groups, height, width)
        x = torch.transpose(x, 1, 2).contiguous()
        return x.view(batch, -1, height, width)


class RNet(nn.Module):
    """Zhang et al. (2016), MTCNN's second stage, as public code of face detection has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 4, 3), nn.PReLU(4)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(4, 4, 2), nn.PReLU(4)
        self.dense, self.prelu3 = nn.Linear(16, 6), nn.PReLU(6)
        self.face, self.softmax = nn.Linear(6, 2), nn.Softmax(dim=1)
        self.box = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu2(self.conv2(x))
        x = x.permute(0, 3, 2, 1).contiguous()
        x = self.prelu3(self.dense(x.view(x.shape[0], -1)))
        return torch.cat([self.softmax(self.face(x)), self.box(x)], 1)


class UNet(nn.Module):
    """Ronneberger et al. (2015): a transposed convolution, padded, joined with the encoder."""

    def __init__(self, *, bilinear: bool = False) -> None:
        super().__init__()
        self.down1, self.down2 = conv(1, 3, 3), nn.Sequential(nn.MaxPool2d(2), conv(3, 6, 3))
        self.up: nn.Module = nn.ConvTranspose2d(6, 3, 2, stride=2)
        if bilinear:
            up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.up = nn.Sequential(up, nn.Conv2d(6, 3, 1))
        self.joined, self.out = conv(6, 3, 3), nn.Conv2d(3, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = self.down1(x)
        up = self.up(self.down2(across))
        high, wide = across.size()[2] - up.size()[2], across.size()[3] - up.size()[3]
        up = F.pad(up, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        return self.out(self.joined(torch.cat([across, up], dim=1))).mean((2, 3))


class Autoencoder(nn.Module):
    """Down by strided convolutions, up by transposed ones; the code is the output's neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Flatten()),
        )
        self.decoder = nn.Sequential(
            *(nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=1)),
            *(nn.ELU(), nn.ConvTranspose2d(3, 1, 4, stride=2, padding=1), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)).flatten(1)[:, ::21]


class LayerNorm2d(nn.Module):
    """ConvNeXt's normalisation of channels, which are first."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.eps, self.shape = eps, (channels,)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    """Liu et al. (2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(2, 4, 2, stride=2), LayerNorm2d(4)
        self.depthwise, self.norm = (
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.LayerNorm(4, eps=1e-6),
        )
        self.up, self.act, self.down = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)
        self.gamma = nn.Parameter(0.1 * torch.ones(4))
        self.last, self.head = nn.LayerNorm(4, eps=1e-6), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.stem(x))
        kept = x
        x = self.depthwise(x).permute(0, 2, 3, 1)
        x = self.gamma * self.down(self.act(self.up(self.norm(x))))
        x = kept + x.permute(0, 3, 1, 2)
        return self.head(self.last(x.mean([-2, -1])))


class ViT(nn.Module):
    """Dosovitskiy et al. (2021), with einops' rearrangements by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.heads, self.scale = nn.Conv2d(2, 4, 2, stride=2), 2, 2**-0.5
        self.cls, self.place = (
            nn.Parameter(torch.randn(1, 1, 4)),
            nn.Parameter(torch.randn(1, 10, 4)),
        )
        self.norm1, self.qkv, self.proj = (
            nn.LayerNorm(4),
            nn.Linear(4, 12, bias=False),
            nn.Linear(4, 4),
        )
        self.norm2, self.mlp = (
            nn.LayerNorm(4),
            nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
        )
        self.attend, self.drop = nn.Softmax(dim=-1), nn.Dropout(0.1)
        self.last, self.head = nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        cls = self.cls.expand(x.shape[0], -1, -1)
        x = self.drop(torch.cat((cls, x), dim=1) + self.place)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.last(x)[:, 0])

    def attention(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = self.drop(self.attend(q @ k.transpose(-2, -1) * self.scale))
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class Swin(nn.Module):
    """Liu et al. (2021): windows, shifted by a roll, with a bias by relative place."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.window, self.heads = nn.Conv2d(2, 4, 1), 2, 2
        self.norm, self.qkv, self.proj = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.bias = nn.Parameter(0.1 * torch.randn(9, 2))
        places = torch.stack(
            torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
        ).flatten(1)
        away = (places[:, :, None] - places[:, None, :] + 1).permute(1, 2, 0)
        self.index: Tensor
        self.register_buffer("index", away[..., 0] * 3 + away[..., 1])
        self.merge, self.head = nn.Linear(16, 6, bias=False), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        for shift in (0, 1):
            x = x + self.block(x, shift)
        x = torch.cat(
            [x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]], -1
        )
        return self.head(self.merge(x).flatten(1, 2).mean(1))

    def block(self, x: Tensor, shift: int) -> Tensor:
        b, h, w, c = x.shape
        x = self.norm(x)
        pad = (self.window - h % self.window) % self.window
        if pad > 0:
            x = F.pad(x, (0, 0, 0, 0, 0, pad))
        if shift > 0:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        x = self.attention(self.partition(x))
        x = x.view(-1, h // self.window, w // self.window, self.window, self.window, c)
        x = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, c)
        return torch.roll(x, (shift, shift), (1, 2)) if shift > 0 else x

    def partition(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.view(b, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window * self.window, c)

    def attention(self, x: Tensor) -> Tensor:
        windows, n, c = x.shape
        qkv = self.qkv(x).reshape(windows, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        bias = self.bias[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        weights = q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1) + bias.unsqueeze(0)
        return self.proj((weights.softmax(dim=-1) @ v).transpose(1, 2).reshape(windows, n, c))


class GPT(nn.Module):
    """Radford et al. (2019), as nanoGPT writes it: tied weights, causal attention."""

    def __init__(self, *, flash: bool) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, 4), nn.Embedding(8, 4)
        self.ln1, self.ln2, self.last = (
            nn.LayerNorm(4),
            nn.LayerNorm(4),
            nn.LayerNorm(4, bias=False),
        )
        self.attn, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.head, self.flash, self.heads = nn.Linear(4, WORDS, bias=False), flash, 2
        self.wte.weight = self.head.weight
        self.mask: Tensor
        self.register_buffer("mask", torch.tril(torch.ones(8, 8)).view(1, 1, 8, 8))

    def forward(self, words: Tensor) -> Tensor:
        _, t = words.size()
        assert t <= 8, f"a sequence of {t} words is too long"
        place = torch.arange(0, t, dtype=torch.long, device=words.device)
        x = F.dropout(self.wte(words) + self.wpe(place), 0.1, self.training)
        x = x + self.attention(self.ln1(x))
        x = x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))
        return self.head(self.last(x)[:, [-1], :]).squeeze(1)[:, :CLASSES]

    def attention(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.attn(x).split(4, dim=2)
        k = k.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        q = q.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        v = v.view(b, t, self.heads, c // self.heads).transpose(1, 2)
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0, is_causal=True)
        else:
            weights = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            weights = weights.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
            y = F.softmax(weights, dim=-1) @ v
        return self.proj(y.transpose(1, 2).contiguous().view(b, t, c))


class Llama(nn.Module):
    """Touvron et al. (2023): root mean squares, turned positions, gated units."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.out = (
            nn.Embedding(WORDS, 4),
            nn.Linear(4, 12, False),
            nn.Linear(4, 4, False),
        )
        self.scale1, self.scale2 = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.gate, self.up, self.down = (
            nn.Linear(4, 6, False),
            nn.Linear(4, 6, False),
            nn.Linear(6, 4, False),
        )
        self.head = nn.Linear(4, CLASSES)
        angles = torch.outer(torch.arange(8.0), 1.0 / 10 ** torch.arange(0, 1.0, 0.5))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        x = x + self.attention(self.normed(x, self.scale1))
        y = self.normed(x, self.scale2)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x[:, -1])

    def normed(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * scale

    def turned(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return x * self.cos[:length] + torch.cat((-right, left), dim=-1) * self.sin[:length]

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
        scores = torch.matmul(self.turned(q), self.turned(k).transpose(1, 2)) / math.sqrt(
            x.shape[-1]
        )
        return self.out(torch.matmul(F.softmax(scores + mask, dim=-1), v))


class Bert(nn.Module):
    """Devlin et al. (2019): three embeddings, a mask of the padding, the first word pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (
            nn.Embedding(WORDS, 4, padding_idx=0),
            nn.Embedding(8, 4),
            nn.Embedding(2, 4),
        )
        self.norm, self.drop = nn.LayerNorm(4, eps=1e-12), nn.Dropout(0.1)
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.out, self.norm1 = nn.Linear(4, 4), nn.LayerNorm(4, eps=1e-12)
        self.up, self.down, self.norm2 = (
            nn.Linear(4, 6),
            nn.Linear(6, 4),
            nn.LayerNorm(4, eps=1e-12),
        )
        self.pooler, self.classifier = nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.register_buffer("ids", torch.arange(8).expand((1, -1)))

    def heads(self, x: Tensor) -> Tensor:
        x = x.view(x.size()[:-1] + (2, 2))  # noqa: RUF005
        return x.permute(0, 2, 1, 3)

    def forward(self, words: Tensor) -> Tensor:
        length = words.size(1)
        kinds = torch.zeros_like(words)
        x = self.words(words) + self.kinds(kinds) + self.places(self.ids[:, :length])
        x = self.drop(self.norm(x))
        mask = (words != 0)[:, None, None, :].to(dtype=x.dtype)
        mask = (1.0 - mask) * -10000.0
        scores = torch.matmul(self.heads(self.query(x)), self.heads(self.key(x)).transpose(-1, -2))
        weights = nn.Softmax(dim=-1)(scores / math.sqrt(2) + mask)
        found = torch.matmul(weights, self.heads(self.value(x))).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(self.drop(self.out(found.view(*found.size()[:-2], 4))) + x)
        x = self.norm2(self.down(F.gelu(self.up(x))) + x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class Encoder(nn.Module):
    """Vaswani et al. (2017): `nn.TransformerEncoder` with a mask of the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(4, CLASSES)
        place = torch.arange(8.0)[:, None] / torch.tensor([1.0, 1.0, 10.0, 10.0])
        self.register_buffer("place", torch.cat([place[:, ::2].sin(), place[:, 1::2].cos()], 1))

    def forward(self, words: Tensor) -> Tensor:
        padding = words == 0
        x = self.table(words) * math.sqrt(4) + self.place[: words.shape[1]]
        x = self.encoder(x, src_key_padding_mask=padding)
        x = x.masked_fill(padding.unsqueeze(-1), 0.0).sum(1) / (~padding).sum(1, keepdim=True)
        return self.head(x)


class MultiHead(nn.Module):
    """`nn.MultiheadAttention` by keywords, its weights taken too."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found, weights = self.attention(query=x, key=x, value=x, need_weights=True)
        return self.head((self.norm(x + found) * weights.mean(-1, keepdim=True)).mean(dim=1))


class MLPMixer(nn.Module):
    """Tolstikhin et al. (2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 4, 2, stride=2)
        self.norm1, self.tokens = (
            nn.LayerNorm(4),
            nn.Sequential(nn.Linear(9, 3), nn.GELU(), nn.Linear(3, 9)),
        )
        self.norm2, self.channels = (
            nn.LayerNorm(4),
            nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)),
        )
        self.last, self.head = nn.LayerNorm(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(self.last(x).mean(dim=1))


class PointNet(nn.Module):
    """Qi et al. (2017): points turned by a matrix of their own, the largest over the points."""

    def __init__(self) -> None:
        super().__init__()
        self.turn1, self.turn2 = nn.Conv1d(3, 4, 1), nn.Linear(4, 9)
        self.conv, self.norm = nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6)
        self.fc1, self.norm1, self.fc2 = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size()[0]
        turn = torch.max(F.relu(self.turn1(x)), 2, keepdim=True)[0].view(-1, 4)
        turn = self.turn2(turn) + torch.eye(3, dtype=x.dtype).view(1, 9).repeat(batch, 1)
        x = torch.bmm(x.transpose(2, 1), turn.view(-1, 3, 3)).transpose(2, 1)
        x = F.relu(self.norm(self.conv(x)))
        x = torch.max(x, 2)[0]
        return F.log_softmax(self.fc2(F.relu(self.norm1(self.fc1(x)))), dim=-1)


class TextCNN(nn.Module):
    """Kim (2014): convolutions of several widths over words, the largest over time."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 4)
        self.convs = nn.ModuleList(nn.Conv2d(1, 3, (width, 4)) for width in (2, 3))
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words).unsqueeze(1)
        found = [F.relu(layer(x)).squeeze(3) for layer in self.convs]
        found = [F.max_pool1d(each, each.size(2)).squeeze(2) for each in found]
        return self.fc(self.drop(torch.cat(found, 1)))


class Recurrent(nn.Module):
    """A classifier by the last state, as tutorials write it."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.table, self.kind = nn.Embedding(WORDS, 3), kind
        self.rnn = getattr(nn, kind)(3, 2, batch_first=True, **options)
        self.fc = nn.Linear(2, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        if self.kind == "LSTM":
            start = torch.zeros(1, x.size(0), 2, dtype=x.dtype)
            _, (hidden, _) = self.rnn(x, (start, start))
            return self.fc(hidden[-1])
        out, _ = self.rnn(x)
        return self.fc(out[:, -1, :])


class HandWrittenLSTM(nn.Module):
    """Hochreiter and Schmidhuber (1997), a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc, self.size = nn.Linear(3 + 2, 8), nn.Linear(2, CLASSES), 2

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], self.size, dtype=x.dtype, device=x.device)
        states = []
        for t in range(x.shape[1]):
            i, f, o, g = self.cell(torch.cat([x[:, t], h], dim=1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return self.fc(torch.stack(states, dim=1).mean(1))


class Normed(nn.Module):
    """Convolutions with another normalisation."""

    def __init__(self, norm: Callable[[int], nn.Module], activation: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), norm(4), activation),
            *(nn.Conv2d(4, 4, 3, stride=2, padding="valid", dilation=1), norm(4), activation),
        )
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x.reshape(x.shape[0], x.shape[1], -1).mean(-1))


class FiLM(nn.Module):
    """Perez et al. (2018): features scaled and shifted by what others say; GLU; a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film, self.glu = nn.Conv2d(2, 4, 3), nn.Linear(2, 8), nn.GLU(dim=1)
        self.gate, self.head = nn.Linear(2, 2), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = torch.split(self.film(x.mean((2, 3))), 4, dim=1)
        out = gamma.view(gamma.size(0), gamma.size(1), 1, 1) * self.conv(x) + beta[..., None, None]
        out = self.glu(F.softplus(out)).amax(dim=(2, 3))
        gate = torch.sigmoid(self.gate(out))
        return self.head(gate * F.mish(out) + (1 - gate) * out)


class WaveNet(nn.Module):
    """van den Oord et al. (2016): dilated causal convolutions, gates, skips added up."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv1d(2, 4, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(4, 8, 2, dilation=2**i) for i in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(4, 3, 1) for _ in range(2))
        self.out = nn.Conv1d(3, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.into(x), 0
        for layer, skip in zip(self.dilated, self.skips, strict=True):
            both = layer(F.pad(x, (layer.dilation[0], 0)))
            gated = torch.tanh(both[:, :4]) * torch.sigmoid(both[:, 4:])
            total = total + skip(gated)
            x = x + gated
        return self.out(F.relu(total))[..., -1]


class GraphConvolution(nn.Module):
    """Kipf and Welling (2017), on a fixed graph of four nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(0.5 * torch.randn(2, 4))
        self.weight2 = nn.Parameter(0.5 * torch.randn(4, CLASSES))
        edges = torch.eye(4) + torch.ones(4, 4).tril(1).triu(-1)
        self.register_buffer("edges", edges / edges.sum(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.edges @ (x @ self.weight1))
        return torch.einsum("nm,bmk->bnk", self.edges, x @ self.weight2).mean(1)


class Highway(nn.Module):
    """Srivastava et al. (2015), with a residual MLP of layers that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.gate, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            share = self.gate(x).sigmoid()
            x = torch.mul(F.relu(self.plain(x)), share) + x * (1 - share)
        return self.fc(x)


IMAGES, WORD_ROWS, ROWS = (2, 6, 6), (6,), (4, 4)

ARCHITECTURES: dict[str, Architecture] = {
    "LeNet": Architecture(LeNet, (1, 13, 13)),
    "VGG": Architecture(VGG, IMAGES),
    "SqueezeNet": Architecture(SqueezeNet, (2, 8, 8)),
    "Inception": Architecture(Inception, (2, 4, 4)),
    "ResNet": Architecture(Residual, IMAGES),
    "ResNeXt": Architecture(lambda: Residual(groups=2), IMAGES),
    "Wide ResNet": Architecture(WideResNet, IMAGES),
    "DenseNet": Architecture(DenseNet, IMAGES),
    "MobileNet v2": Architecture(InvertedResidual, IMAGES),
    "MobileNet v3": Architecture(MobileNetV3, IMAGES),
    "EfficientNet": Architecture(EfficientNet, (2, 7, 6)),
    "ShuffleNet": Architecture(ShuffleNet, (2, 4, 4)),
    "R-Net": Architecture(RNet, (3, 8, 8)),
    "U-Net": Architecture(UNet, (1, 7, 6)),
    "U-Net, bilinear": Architecture(lambda: UNet(bilinear=True), (1, 7, 6)),
    "autoencoder": Architecture(Autoencoder, (1, 8, 8)),
    "ConvNeXt": Architecture(ConvNeXt, IMAGES),
    "ViT": Architecture(ViT, IMAGES),
    "Swin": Architecture(Swin, (2, 4, 4)),
    "MLP-Mixer": Architecture(MLPMixer, IMAGES),
    "GPT-2": Architecture(lambda: GPT(flash=True), WORD_ROWS, True),
    "GPT-2, attention by hand": Architecture(lambda: GPT(flash=False), WORD_ROWS, True),
    "Llama": Architecture(Llama, WORD_ROWS, True),
    "BERT": Architecture(Bert, WORD_ROWS, True),
    "Transformer encoder": Architecture(Encoder, WORD_ROWS, True),
    "multi-head attention": Architecture(MultiHead, ROWS),
    "TextCNN": Architecture(TextCNN, WORD_ROWS, True),
    "LSTM": Architecture(lambda: Recurrent("LSTM"), WORD_ROWS, True),
    "GRU": Architecture(lambda: Recurrent("GRU", num_layers=2), WORD_ROWS, True),
    "LSTM by hand": Architecture(HandWrittenLSTM, (4, 3)),
    "WaveNet": Architecture(WaveNet, (2, 6)),
    "PointNet": Architecture(PointNet, (3, 6)),
    "graph convolution": Architecture(GraphConvolution, (4, 2)),
    "Highway": Architecture(Highway, (4,)),
    "FiLM and gates": Architecture(FiLM, (2, 4, 4)),
    "GroupNorm and SiLU": Architecture(
        lambda: Normed(lambda channels: nn.GroupNorm(2, channels), nn.SiLU()), IMAGES
    ),
    "InstanceNorm and Mish": Architecture(
        lambda: Normed(lambda channels: nn.InstanceNorm2d(channels, affine=True), nn.Mish()), IMAGES
    ),
}
"""By name."""
