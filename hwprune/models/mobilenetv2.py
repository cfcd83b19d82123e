"""MobileNetV2 (Sandler et al. 2018, table 2): 3.5 M parameters at 1000 classes. Parameter names as in torchvision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from hwprune.models._base import AbstractReference
from hwprune.models._layers import SameConv2d, global_average, initialise, scaled

# expansion, channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv_bn(
    in_channels: int, channels: int, kernel: int, stride: int, groups: int, same: bool
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution: type[nn.Conv2d] = SameConv2d if same else nn.Conv2d
    padding = 0 if same else kernel // 2
    conv = convolution(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(channels)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; with a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int, same: bool) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(nn.Sequential(*_conv_bn(in_channels, hidden, 1, 1, 1, same), nn.ReLU6()))
        layers.append(nn.Sequential(*_conv_bn(hidden, hidden, 3, stride, hidden, same), nn.ReLU6()))
        self.conv = nn.Sequential(*layers, *_conv_bn(hidden, channels, 1, 1, 1, same))

    def forward(self, images: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to `(N, channels, H / stride, W / stride)`."""
        out: Tensor = self.conv(images)
        return images + out if self.shortcut else out


class MobileNetV2Network(nn.Module):
    """Stem, 17 inverted residuals, a 1x1 head, global average, dropout and a linear classifier."""

    def __init__(self, width: float, classes: int, in_channels: int, strides: tuple[int, ...], same: bool) -> None:
        super().__init__()
        channels = scaled(32, width)
        features: list[nn.Module] = [
            nn.Sequential(*_conv_bn(in_channels, channels, 3, strides[0], 1, same), nn.ReLU6())
        ]
        for (expansion, base, blocks, _), stride in zip(STAGES, strides[1:], strict=True):
            for block in range(blocks):
                out = scaled(base, width)
                features.append(InvertedResidual(channels, out, stride if block == 0 else 1, expansion, same))
                channels = out
        head = scaled(1280, max(1.0, width))
        features.append(nn.Sequential(*_conv_bn(channels, head, 1, 1, 1, same), nn.ReLU6()))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(head, classes))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to logits `(N, classes)`."""
        logits: Tensor = self.classifier(global_average(self.features(images)))
        return logits


@dataclass(frozen=True)
class MobileNetV2(AbstractReference):
    """25 channel groups to choose from. `small_input` suits images of 32 to 64 pixels."""

    default_classes: ClassVar[int] = 1000
    default_input_shape: ClassVar[tuple[int, int, int]] = (3, 224, 224)

    width: float = field(
        default=1.0, metadata={"help": "multiplies all channels (rounded to 8); the head only upwards"}
    )
    small_input: bool = field(
        default=False, metadata={"help": "stride 1 in the stem and in the second stage, for small images"}
    )
    padding: Literal["symmetric", "same"] = field(default="symmetric", metadata={"help": "same: TensorFlow's SAME"})

    def build(self, classes: int, in_channels: int) -> nn.Module:
        """Input `(N, in_channels, H, W)`, logits `(N, classes)`."""
        strides = [2, *(stage[3] for stage in STAGES)]
        if self.small_input:
            strides[0] = strides[2] = 1
        return MobileNetV2Network(self.width, classes, in_channels, tuple(strides), self.padding == "same")
