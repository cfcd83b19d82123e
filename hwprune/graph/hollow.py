"""Layers without input or output channels: what is left of a vanished residual branch in the cut module.

torch neither convolves nor normalises zero channels as it should. These stand in for such layers, keep their weights,
some of them empty, under the same names, and know the size of the image.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class HollowConv2d(nn.Conv2d):
    """A convolution from or to no channels: it gives its bias everywhere.

    `stencil` holds the layer it stands for with one channel and without data, which knows the size of the image also
    where a class of the user's pads in its own way.
    """

    stencil: tuple[nn.Module]

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C', H', W')`, C or C' being 0."""
        image = torch.empty((input.shape[0], 1, *input.shape[2:]), device="meta")
        size = self.stencil[0](image).shape[2:]
        output = input.new_zeros((input.shape[0], self.weight.shape[0], *size))
        return output if self.bias is None else output + self.bias[:, None, None]


class HollowBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of no channels."""

    def forward(self, input: Tensor) -> Tensor:
        """`(N, 0, H, W)` as it is."""
        return input


def make_hollow(model: nn.Module) -> None:
    """Turn every layer of the model whose weights were cut to nothing into its hollow stand-in, in place."""
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d) and not module.weight.numel():
            stencil = _stencil(module)
            module.__class__ = HollowConv2d
            # Not registered, and in a tuple: its parameter does not belong to the state of the network.
            module.__dict__["stencil"] = (stencil,)
        elif isinstance(module, _BatchNorm) and not module.num_features:
            module.__class__ = HollowBatchNorm2d


def _stencil(conv: nn.Conv2d) -> nn.Conv2d:
    """The same layer from one channel to one, without data."""
    weight = nn.Parameter(torch.empty((1, 1, *conv.kernel_size), device="meta"))
    memo: dict[int, object] = {id(conv.weight): weight, id(conv.bias): None}
    single = copy.deepcopy(conv, memo)
    single.in_channels = single.out_channels = single.groups = 1
    return single
