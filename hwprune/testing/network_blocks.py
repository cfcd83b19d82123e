"""The modules of the tiny networks in `networks.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


class Chain(nn.Module):
    """VGG-like: convolutions with bias and pooling, then flatten and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(12)
        self.fc1 = nn.Linear(12 * 4 * 4, 20)
        self.fc2 = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.leaky_relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.silu(self.fc1(torch.flatten(x, 1))))  # type: ignore[no-any-return]


class OptionABlock(nn.Module):
    """Basic block whose shortcut takes every second pixel and pads channels with zeros on both sides."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: Callable[[Tensor], Tensor] = nn.Identity()
        if stride != 1:
            # The literal lives in a closure, as in the code this family is known from.
            self.shortcut = _Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, c_out // 4, c_out // 4)))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class _Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class OptionBBlock(nn.Module):
    """Basic block whose shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """ResNet-50 block: 1x1, 3x3, 1x1; the 3x3 may be grouped as in ResNeXt."""

    def __init__(self, c_in: int, width: int, c_out: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(c_in, width, 1),
            conv_bn(width, width, 3, stride, groups),
            nn.Conv2d(width, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.downsample(x))


class ResNet(nn.Module):
    """A stem, blocks, global average pooling, a linear classifier."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """MobileNetV2 block: expand, depthwise, project, with a residual where the shape allows."""

    def __init__(self, c_in: int, hidden: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1 and c_in == c_out
        self.body = nn.Sequential(
            conv_bn(c_in, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)  # type: ignore[no-any-return]


class DenseNet(nn.Module):
    """Concatenation of all features so far; batch norm before each convolution; a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * n) for n in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 6 * n, 6, 3, padding=1, bias=False) for n in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(26), nn.ReLU(), nn.Conv2d(26, 13, 1), nn.AvgPool2d(2))
        self.norm = nn.BatchNorm2d(13)
        self.fc = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = F.relu(self.norm(self.transition(torch.cat(features, 1))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Two levels down, transposed convolutions up, skips by concatenation; image out."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv_bn(3, 6), conv_bn(6, 10), conv_bn(10, 12)
        self.up2 = nn.ConvTranspose2d(12, 10, 2, 2)
        self.merge2 = conv_bn(20, 10)
        self.up1 = nn.ConvTranspose2d(10, 6, 2, 2, bias=False)
        self.merge1 = conv_bn(12, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.bottom(F.max_pool2d(second, 2))
        x = self.merge2(torch.cat([self.up2(x), second], 1))
        return self.head(self.merge1(torch.cat([self.up1(x), first], 1)))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """A residual net whose block scales its channels by a small network of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = conv_bn(3, 12), conv_bn(12, 12)
        self.reduce, self.expand = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(x)
        scale = self.expand(F.relu(self.reduce(y.mean((2, 3), keepdim=True))))
        return self.fc((x + y * torch.sigmoid(scale)).mean((2, 3)))  # type: ignore[no-any-return]


class GroupedTransposed(nn.Module):
    """Grouped convolutions, plain and transposed, a depthwise one with multiplier, channel multipliers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.grouped = conv_bn(12, 24, groups=3)
        self.up = nn.ConvTranspose2d(24, 12, 2, 2, groups=3)
        self.multiplied = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.prelu = nn.PReLU(24)
        self.scale = nn.Parameter(torch.rand(24, 1, 1) + 0.5)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(self.stem(x)))
        x = self.prelu(self.multiplied(x)) * self.scale
        return self.fc(x.amax((2, 3)))  # type: ignore[no-any-return]


class Shuffle(nn.Module):
    """ShuffleNetV2-like: split in halves, one passes, the other is convolved; concatenated and shuffled by views."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.branches = nn.ModuleList(
            nn.Sequential(conv_bn(8, 8, 1), conv_bn(8, 8, groups=8), conv_bn(8, 8, 1)) for _ in range(2)
        )
        self.tail = conv_bn(16, 10, 1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, dim=1)
            x = torch.cat([left, branch(right)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.fc(self.tail(x).mean((2, 3)))  # type: ignore[no-any-return]


class C2f(nn.Module):
    """YOLO's C2f: chunk, a growing list of residual bottlenecks, concatenation; then upsampling and a second scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.cv1 = conv_bn(8, 16, 1)
        self.blocks = nn.ModuleList(nn.Sequential(conv_bn(8, 6), conv_bn(6, 8)) for _ in range(2))
        self.cv2 = conv_bn(32, 12, 1)
        self.head, self.coarse = nn.Conv2d(20, 7, 1), nn.Conv2d(12, 7, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stem = self.stem(x)
        parts = list(self.cv1(stem).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        y = self.cv2(torch.cat(parts, 1))
        small = F.max_pool2d(y, 2)
        y = torch.cat([F.interpolate(small, scale_factor=2.0), stem], 1)
        return self.head(y), self.coarse(small)


class SubPixel(nn.Module):
    """Super-resolution: a trunk with a global skip, pixel shuffle, image out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 8, 3, padding=1))
        self.up = nn.Conv2d(8, 24, 3, padding=1)
        self.tail = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        x = x + self.body(x)
        return self.tail(F.pixel_shuffle(self.up(x), 2))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values, and a fixed number of heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, t, -1))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Patch embedding, position embedding, pre-norm blocks of attention and a two-layer network, mean of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, 16) * 0.1)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(4))
        self.attention = nn.ModuleList(Attention(16, 2) for _ in range(2))
        self.mlp = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for n in range(2):
            x = x + self.attention[n](self.norms[2 * n](x))
            x = x + self.mlp[n](self.norms[2 * n + 1](x))
        return self.fc(x.mean(1))  # type: ignore[no-any-return]


class TwoInputs(nn.Module):
    """Two images through a shared stem, joined; a mapping with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.left, self.right = conv_bn(8, 10), conv_bn(8, 10)
        self.join = conv_bn(20, 6, 1)
        self.classes, self.box = nn.Linear(6, 5), nn.Linear(6, 4)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.left(self.stem(first)), self.right(self.stem(second))], 1)
        x = self.join(x).mean((2, 3))
        return {"classes": self.classes(x), "box": self.box(x)}


class GroupNormNet(nn.Module):
    """Convolutions with group normalisation: whole groups of four channels go at once. Instance norm beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.conv2, self.norm2 = nn.Conv2d(16, 10, 3, padding=1), nn.InstanceNorm2d(10, affine=True)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.fc(x.amax((2, 3)))  # type: ignore[no-any-return]


class Registered(nn.Module):
    """A stem and a stage that are attributes, and again members of a list, as wrappers of backbones write it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.stage = conv_bn(3, width, stride=2), OptionBBlock(width, 3 * width // 2, 2)
        self.features = nn.Sequential(self.stem, self.stage, conv_bn(3 * width // 2, 2 * width, 1))
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Two residual blocks of one set of filters, each with norms of its own, as a recurrent network unrolled."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem, self.tail = conv_bn(3, width), conv_bn(width, 2 * width, 1)
        self.first, self.second = OptionBBlock(width, width, 1), OptionBBlock(width, width, 1)
        self.second.conv1.weight, self.second.conv2.weight = self.first.conv1.weight, self.first.conv2.weight
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tail(self.second(self.first(self.stem(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
