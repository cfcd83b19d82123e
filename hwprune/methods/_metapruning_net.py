"""PruningNet: the weights of every layer as a function of the widths of the groups it touches.

`W = W0 + reshape(A2 relu(A1 e + a1))`: e are the relative widths, W0 is the bias of the generator's second layer and
has the shape of the weight. The full-size weight is generated and cropped to the first units of each group, in a
fixed order. Source: Liu et al. 2019, "MetaPruning" (arXiv 1903.10258), for any traced graph:
crops follow the graph's index maps, so concatenations, depthwise and grouped layers need no special case. Where we
differ: one batch norm a position with cropped weight and bias in place of one for every width (batch statistics make
them equivalent), and W0 may start as the trained weight with A2 at zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.core.errors import UsageError
from hwprune.core.widths import SearchSpace, Widths
from hwprune.graph import ChannelGraph
from hwprune.graph.stateless import called_with
from hwprune.methods._base import top_units
from hwprune.methods._sliced import Slices
from hwprune.training._random import redraw

Encoding = Literal["layer", "block"]

# A group is inside a block when the weights that touch it reach no more than two other groups: what goes in and out.
_INSIDE = 2


class MetaBlock(nn.Module):
    """What is added to one weight: two fully connected layers from the encoding, `(inputs,)` -> the weight's shape."""

    def __init__(self, inputs: int, hidden: int, like: Tensor) -> None:
        super().__init__()
        self.shape = like.shape
        self.first = nn.Linear(inputs, hidden, device=like.device, dtype=like.dtype)
        self.second = nn.Linear(hidden, like.numel(), bias=False, device=like.device, dtype=like.dtype)

    def hidden(self, encoding: Tensor) -> Tensor:
        """`relu(A1 e + a1)`, `(hidden,)`."""
        return torch.relu(self.first(encoding))

    def forward(self, encoding: Tensor) -> Tensor:
        """The correction for relative widths `(inputs,)`."""
        correction: Tensor = self.second(self.hidden(encoding))
        return correction.reshape(self.shape)


class PruningNet(nn.Module):
    """Runs any sub-network of `space` with weights generated for it.

    `model` holds W0 and what is not generated (biases, norms, weights outside the space). `scores` order the units:
    a group of width w uses its w best. `hidden=0` is plain weight sharing. With `warm` W0 is the trained weight and the
    corrections start at 0, else all starts at random. The given model is left as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        space: SearchSpace,
        scores: Mapping[str, np.ndarray],
        *,
        hidden: int = 32,
        encoding: Encoding = "block",
        warm: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.graph, self.space, self.scores = graph, space, scores
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = copy.deepcopy(model) if warm else with_random_weights(model)
            self.encoded = encodings(self.model, graph, space, encoding)
            weights = dict(self.model.named_parameters())
            shapes = [(len(groups), weights[name]) for name, groups in self.encoded.items()] if hidden else []
            self.blocks = nn.ModuleList([MetaBlock(inputs, hidden, like) for inputs, like in shapes])
            if warm:
                for block in self.blocks:
                    nn.init.zeros_(block.second.weight)  # type: ignore[arg-type, union-attr]
            else:
                self._start_by_fan_in()
        self._crop: Slices | None = None

    def forward(self, images: Tensor, widths: Widths) -> Tensor:
        """Outputs for images `(N, C, H, W)`; buffers are not updated."""
        crop = self.crop(widths)
        crop.small.train(self.training)
        tensors = {name: crop.select(name, value) for name, value in self.weights(widths).items()}
        for name, buffer in self.model.named_buffers():
            part = crop.select(name, buffer)
            tensors[name] = part.clone() if part is buffer else part
        return called_with(crop.small, tensors, images)

    def weights(self, widths: Widths) -> dict[str, Tensor]:
        """All full-size parameters for a structure, the generated ones in full precision with their correction."""
        weights: dict[str, Tensor] = dict(self.model.named_parameters())
        device = next(iter(weights.values())).device
        with torch.autocast(device.type, enabled=False):
            for block, (name, groups) in zip(self.blocks, self.encoded.items(), strict=bool(self.blocks)):
                weights[name] = weights[name] + block(self._encode(widths, groups, weights[name]))
        return weights

    @torch.no_grad()
    def state(self, widths: Widths) -> dict[str, Tensor]:
        """A full-size state dict of the traced network with the weights generated for a structure."""
        return self.graph.changed_state(self.model.state_dict(), self.weights(widths))

    def crop(self, widths: Widths) -> Slices:
        """The sub-network of these widths."""
        keep = top_units(self.scores, widths)
        if self._crop is None or self._crop.keep != keep:
            self._crop = Slices.of(self.model, self.graph, keep)
        return self._crop

    def _encode(self, widths: Widths, groups: tuple[int, ...], like: Tensor) -> Tensor:
        values = widths.values_tuple()
        return like.new_tensor([values[index] / self.space.groups[index].units for index in groups])

    @torch.no_grad()
    def _start_by_fan_in(self) -> None:
        """Random W0 and A2 of equal variance, 2 / fan-in together: sound without a batch norm behind it too.

        The fan-in is that of the mean width; the paper's code relies on the norm instead.
        """
        weights = dict(self.model.named_parameters())
        middle = self.space.make([allowed[len(allowed) // 2] for allowed in self.space.widths])
        shares = {name: float(np.mean(allowed)) / allowed[-1] for name, allowed in self._named_widths()}
        for block, (name, groups) in zip(self.blocks, self.encoded.items(), strict=bool(self.blocks)):
            deviation = math.sqrt(1 / max(1.0, _fan_in(self.graph, self.space, name, weights[name], shares)))
            weights[name].normal_(0.0, deviation)
            length = block.hidden(self._encode(middle, groups, weights[name])).norm()  # type: ignore[operator]
            block.second.weight.normal_(0.0, deviation / max(float(length), 1e-3))  # type: ignore[operator, union-attr]

    def _named_widths(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(zip(self.space.names, self.space.widths, strict=True))


def encodings(
    model: nn.Module, graph: ChannelGraph, space: SearchSpace, encoding: Encoding
) -> dict[str, tuple[int, ...]]:
    """Generated parameter -> positions in the space of the groups whose widths it sees.

    Generated is every weight of two or more dims that a group of the space cuts. `layer`: the groups that cut it.
    `block`: also the groups next to those of them that lie inside a block, as the paper's bottlenecks see their input,
    middle and output.
    """
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    touched: dict[str, set[int]] = {}
    for index, group in enumerate(space.names):
        for _, piece in graph.slices[group]:
            if piece.parameter in matrices:
                touched.setdefault(piece.parameter, set()).add(index)
    if encoding == "block":
        near: dict[int, set[int]] = {}
        for groups in touched.values():
            for index in groups:
                near.setdefault(index, set()).update(groups - {index})
        inside = {index: others for index, others in near.items() if len(others) <= _INSIDE}
        touched = {
            name: groups.union(*(inside.get(index, set()) for index in groups)) for name, groups in touched.items()
        }
    order = [name for name, _ in model.named_parameters() if name in touched]
    return {name: tuple(sorted(touched[name])) for name in order}


def parameter_count(model: nn.Module, graph: ChannelGraph, space: SearchSpace, hidden: int, encoding: Encoding) -> int:
    """The parameters of a PruningNet, without making it: about (hidden + 1) times the generated weights."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    blocks = sum(
        hidden * (len(groups) + 1 + sizes[name]) for name, groups in encodings(model, graph, space, encoding).items()
    )
    return sum(sizes.values()) + blocks


def with_random_weights(model: nn.Module) -> nn.Module:
    """A copy with every module's weights drawn anew by the module itself, from torch's global generator.

    Raises `UsageError` for a module with weights of its own that cannot draw them.
    """
    fresh = copy.deepcopy(model)
    for path, module in fresh.named_modules():
        if not redraw(module) and any(True for _ in module.parameters(recurse=False)):
            raise UsageError(
                f"'{path}' ({type(module).__name__}) has weights but no reset_parameters(): it cannot start at random",
                hint="use warm_start=True and weights=generated, or give that class a reset_parameters method",
            )
    return fresh


def _fan_in(graph: ChannelGraph, space: SearchSpace, name: str, weight: Tensor, shares: Mapping[str, float]) -> float:
    """Inputs of one output of a weight, at mean widths."""
    produced, share = 0, 1.0
    for group in space.names:
        for role, piece in graph.slices[group]:
            if piece.parameter == name and role == "produce":
                produced = piece.dim
            elif piece.parameter == name and role == "consume":
                part = len(piece.positions) / weight.shape[piece.dim]
                share *= 1 - part * (1 - shares[group])
    return weight.numel() / weight.shape[produced] * share
