"""Which groups may lose all their units: those inside a residual branch, whose output then is a constant a channel.

Without its inputs a convolution gives its bias, batch normalisation and activations turn that into another constant,
and the addition to the shortcut adds it. Everything before vanishes. The rule is strict: where the constant meets
anything but an addition to something of the same shape, the group keeps at least one unit; so it does where layers of
another group would be left in the branch that nothing reads any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from hwprune.graph.call import tensors_in
from hwprune.graph.channel_graph import ChannelGraph
from hwprune.graph.tape import copied, plain_attention

_State = Literal["empty", "constant"]
_States = Mapping[str, _State]

_NORMS = ("_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
# Operators that make a constant of a constant, and nothing of nothing.
_POINTWISE = (
    "relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "hardsigmoid",
    "hardswish", "tanh", "softplus", "clamp", "clamp_min", "clamp_max", "clone", "detach", "alias", "contiguous",
    "native_dropout", "dropout", *_NORMS,
)  # fmt: skip
_OF_NOTHING = ("max_pool2d_with_indices", "avg_pool2d", "mean", "_adaptive_avg_pool2d", "adaptive_avg_pool2d")


@torch.no_grad()
def skippable_groups(graph: ChannelGraph, model: nn.Module, example: tuple[Tensor, ...]) -> tuple[str, ...]:
    """The removable groups without which only a constant is left of a residual branch, found by one forward run."""
    model = copied(model).eval()
    follow = _Follow({id(tensor): name for name, tensor in model.named_parameters()}, *_whole_dims(graph))
    with plain_attention(), follow:
        outputs = tensors_in(model(*example))
    for output in outputs:
        follow.refuse(follow.states(output))
    follow.refuse_idle()
    return tuple(group.name for group in graph.removable if group.name in follow.joined - follow.refused)


def _whole_dims(graph: ChannelGraph) -> tuple[dict[str, str], dict[str, str]]:
    """Weight -> group for convolutions that make nothing but the group, and for those that read nothing else."""
    makers: dict[str, str] = {}
    readers: dict[str, str] = {}
    for group in graph.removable:
        for role, item in graph.slices[group.name]:
            shape = graph.sizes[item.parameter]
            if len(shape) == 4 and item.positions.size == shape[item.dim]:
                if role == "produce" and item.dim == 0:
                    makers[item.parameter] = group.name
                elif role == "consume" and item.dim == 1:
                    readers[item.parameter] = group.name
    return makers, readers


@dataclass(eq=False)
class _Follow(TorchDispatchMode):
    """Notes for every activation what becomes of it when a group has no units: nothing, or a constant a channel."""

    names: Mapping[int, str]
    makers: Mapping[str, str]
    readers: Mapping[str, str]
    joined: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        # For each reader of a tensor the groups without which it has nothing to do; and where branches begin.
        self._readers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._entries: list[tuple[str, list[_States]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def states(self, tensor: object) -> _States:
        """Group -> what is left of this tensor without it; absent: it is not touched."""
        found: _States = self._known.get(tensor, {}) if isinstance(tensor, Tensor) else {}  # type: ignore[no-untyped-call]
        return found

    def refuse(self, states: _States) -> None:
        """These groups cannot vanish."""
        self.refused.update(states)

    def refuse_idle(self) -> None:
        """Refuse groups without which something is computed that nothing reads."""
        self.refused.update(group for group, readers in self._entries if all(group in left for left in readers))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [tensor for tensor in tensors_in((args, kwargs or {})) if isinstance(tensor, Tensor)]
        # Before the operator runs: one in place has the same tensor as input and output.
        result = self._after(func._schema.name.removeprefix("aten::").rstrip("_"), args, inputs)
        for tensor in inputs:
            self._readers_of(tensor).append(result)
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._known[tensor] = result
            self._readers[tensor] = []
        return out

    def _readers_of(self, tensor: Tensor) -> list[_States]:
        found: list[_States] = self._readers.setdefault(tensor, [])  # type: ignore[no-untyped-call]
        return found

    def _after(self, operator: str, args: tuple[Any, ...], inputs: list[Tensor]) -> _States:
        """The states of the operator's output."""
        if operator == "convolution":
            return self._convolution(args)
        touched = {group for tensor in inputs for group in self.states(tensor)}
        if operator in _POINTWISE and touched:
            return self.states(inputs[0]) if len(touched) == len(self.states(inputs[0])) else self._lost(touched)
        result: dict[str, _State] = {}
        for group in touched:
            left = [self.states(tensor).get(group) for tensor in inputs]
            after = self._joined(operator, group, left, inputs)
            if after is not None:
                result[group] = after
        return result

    def _joined(self, operator: str, group: str, left: list[_State | None], inputs: list[Tensor]) -> _State | None:
        """What an operator with several operands, or one over positions, leaves of its output."""
        if operator in ("add", "mul") and all(state == "empty" for state in left):
            return "empty"
        if operator in _OF_NOTHING and left == ["empty"]:
            return "empty"
        is_sum = operator == "add" and len(left) == 2 and {*left} == {"constant", None}
        if is_sum and inputs[0].shape == inputs[1].shape:
            self.joined.add(group)
            return None
        self.refused.add(group)
        return None

    def _lost(self, groups: set[str]) -> _States:
        self.refused.update(groups)
        return {}

    def _convolution(self, args: tuple[Any, ...]) -> _States:
        states, weight = self.states(args[0]), self.names.get(id(args[1]), "")
        transposed, groups = bool(args[6]), int(args[8])
        result: dict[str, _State] = {}
        for group in {*states, *filter(None, (self.makers.get(weight), self.readers.get(weight)))}:
            if self.makers.get(weight) == group and not transposed:
                result[group] = "empty"
                if group not in states:
                    self._entries.append((group, self._readers_of(args[0])))
            elif self.readers.get(weight) == group and states.get(group) == "empty" and groups == 1 and not transposed:
                result[group] = "constant"
            else:
                self.refused.add(group)
        return result
