"""The self-check: cut and masked network must agree, otherwise the group that makes them differ is pinned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from hwprune.graph.build import build
from hwprune.graph.channel_graph import AttributeEdit, ChannelGraph
from hwprune.graph.gates import gate_parameters
from hwprune.graph.groups import Structure
from hwprune.graph.labels import Pin
from hwprune.graph.surgery import cut, mask
from hwprune.graph.call import tensors_in
from hwprune.graph.tape import copied, first_line, plain_attention

_TOLERANCE = 1e-4


def verified(
    structure: Structure, model: nn.Module, example: tuple[Tensor, ...], pinned: dict[str, Pin]
) -> ChannelGraph:
    """The graph whose removable groups were all proved on the example; the others are pinned with what went wrong.

    All groups are tried at once. Only when that fails are they tried by halves, each half on top of what was found
    good before, so that groups which fail only together are found as well.
    """
    graph = build(structure, model, example, pinned)
    check = _Check(model, example)
    good: list[str] = []
    bad: dict[str, Pin] = {}
    _search(graph, check, [group.name for group in graph.removable], good, bad)
    return build(structure, model, example, {**pinned, **bad}) if bad else graph


def _search(graph: ChannelGraph, check: _Check, names: list[str], good: list[str], bad: dict[str, Pin]) -> None:
    if not names:
        return
    failure = check(graph, [*good, *names])
    if not failure:
        good += names
    elif len(names) == 1:
        group = graph.group(names[0])
        bad[names[0]] = Pin("self-check", group.producers[0] if group.producers else "", "", group.units, failure)
    else:
        _search(graph, check, names[: len(names) // 2], good, bad)
        _search(graph, check, names[len(names) // 2 :], good, bad)


class _Check:
    """Compares cut, masked and gated network on the example, with weights that hide nothing."""

    def __init__(self, model: nn.Module, example: tuple[Tensor, ...]) -> None:
        self.example = tuple(_lively_input(tensor) for tensor in example)
        self.model = _lively(model, self.example)

    def __call__(self, graph: ChannelGraph, names: Sequence[str]) -> str:
        """What goes wrong when about half of each group is removed, the empty string if nothing does."""
        keep = _random_keep(graph, names)
        try:
            small = self._run(cut(self.model, graph, keep))
        except Exception as error:  # noqa: BLE001 - the user's forward may raise anything on other shapes
            return f"the network does not run without some of its channels: {first_line(error)}"
        if not _agree(small, self._run(mask(self.model, graph, keep))):
            return "removing some of its channels changes the result of the others"
        if not _agree(small, self._gated(graph, keep)):
            return "its channels act on the result in other ways than through the weights that read them"
        return ""

    def _run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), plain_attention(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return tensors_in(model(*self.example))

    def _gated(self, graph: ChannelGraph, keep: dict[str, list[int]]) -> list[Tensor]:
        gates = {}
        for name, kept in keep.items():
            gates[name] = torch.zeros(graph.group(name).units)
            gates[name][kept] = 1.0
        parameters = dict(self.model.named_parameters())
        changed = gate_parameters(parameters, graph, gates)
        with torch.no_grad(), plain_attention(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return tensors_in(functional_call(self.model, changed, self.example))


def _random_keep(graph: ChannelGraph, names: Sequence[str]) -> dict[str, list[int]]:
    rng = np.random.default_rng(0)
    keep = {}
    for name in names:
        units = graph.group(name).units
        keep[name] = sorted(rng.choice(units, max(1, units // 2), replace=False).tolist())
    return keep


def _lively(model: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """A copy in eval mode whose output depends on every layer.

    A zero-initialised layer would hide every mistake before it, and so would a signal that dies out because the
    running statistics of a network without training do not fit its activations.
    """
    copy = copied(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*copy.named_parameters(), *copy.named_buffers()]:
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                noise = torch.rand(tensor.shape, generator=generator)
                noise = noise + 0.5 if "var" in name or tensor.flatten()[0] > 0 else noise * 0.2 - 0.1
                tensor.copy_(noise.to(tensor.device, tensor.dtype))
    hooks = [m.register_forward_pre_hook(_calibrate) for m in copy.modules() if isinstance(m, _BatchNorm)]
    with torch.no_grad(), plain_attention():
        copy(*example)
    for hook in hooks:
        hook.remove()
    return copy


def _calibrate(module: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Set the running statistics of a batch norm to those of its input."""
    x, mean, variance = args[0].float(), module.running_mean, module.running_var
    if isinstance(mean, Tensor) and isinstance(variance, Tensor) and x.numel() > x.shape[1]:
        dims = [dim for dim in range(x.ndim) if dim != 1]
        spread = x.var(dims, unbiased=False)
        mean.copy_(x.mean(dims) * 0.9)
        variance.copy_(spread + 0.1 * spread.mean() + 1e-6)


def _lively_input(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
    return tensor


def _agree(left: list[Tensor], right: list[Tensor]) -> bool:
    if [tensor.shape for tensor in left] != [tensor.shape for tensor in right]:
        return False
    for one, other in zip(left, right, strict=True):
        scale = float(other.double().abs().max()) if other.numel() else 0.0
        difference = float((one.double() - other.double()).abs().max()) if other.numel() else 0.0
        if not difference <= _TOLERANCE * scale:
            return False
    return True
