"""Building blocks that several reference networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwprune.core.errors import UsageError

_MULTIPLE = 8


def scaled(channels: int, width: float) -> int:
    """`channels * width` rounded to a multiple of 8, at least 8 and never more than 10 % below.

    The rule of MobileNet (Howard et al. 2017); with `width=1` it changes no multiple of 8.
    Raises `UsageError` for a width that is not positive.
    """
    if not 0 < width < 64:
        raise UsageError(f"a width multiplier must lie between 0 and 64, not {width}", hint="width=1 is the original")
    rounded = max(_MULTIPLE, int(channels * width + _MULTIPLE / 2) // _MULTIPLE * _MULTIPLE)
    return rounded + _MULTIPLE if rounded < 0.9 * channels * width else rounded


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: output `ceil(size / stride)`, the odd pixel right and below.

    The padding follows from the input's shape as plain integers, so a trace sees constants.
    """

    def forward(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, out_channels, ceil(H / stride), ceil(W / stride))`."""
        down = _same_padding(int(images.shape[2]), self.kernel_size[0], self.stride[0])
        right = _same_padding(int(images.shape[3]), self.kernel_size[1], self.stride[1])
        if down == right and down % 2 == 0:
            padding = (down // 2, right // 2)
            return functional.conv2d(images, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        padded = functional.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _same_padding(size: int, kernel: int, stride: int) -> int:
    return max(0, (-(-size // stride) - 1) * stride + kernel - size)


def initialise(model: nn.Module) -> None:
    """He initialisation (fan out) of convolutions, small normal weights of linear layers, unit normalisation."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def global_average(features: Tensor) -> Tensor:
    """`(N, C, H, W)` to `(N, C)`."""
    return torch.flatten(functional.adaptive_avg_pool2d(features, 1), 1)
