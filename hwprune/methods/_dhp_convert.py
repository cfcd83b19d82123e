"""From latents and kernels to the plain weights of an ordinary network, of ordinary size."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hwprune.graph import ChannelGraph
from hwprune.methods._dhp_hyper import Collapsed
from hwprune.methods._gates import norm_behind

# Outputs that differ by less, relative to the largest one, are equal: other orders of summation make such differences.
_EQUAL = 1e-3

State = dict[str, Tensor]


@torch.no_grad()
def plain_state(model: nn.Module, hyper: Collapsed, graph: ChannelGraph, flat: Tensor) -> State:
    """A full-size state dict with the latents multiplied in: no latent and no hypernetwork is left.

    A small latent makes small filters, which a batch norm hides, but which a later training changes too fast. So each
    filter in front of a batch norm gets the size of its kernel, and the norm's statistics and weight follow, which
    leaves the function as it is. Where that is not so (the filter is read before the norm too), nothing is changed.
    """
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state.update({name: weight.detach().clone() for name, weight in hyper.weights(model, flat, flat).items()})
    changes = list(_resized(model, hyper, graph, flat, state))
    together = {name: value for change in changes for name, value in change.items()}
    if _same_function(model, graph, state, together):
        return {**state, **together}
    for change in changes:
        if _same_function(model, graph, state, change):
            state.update(change)
    return state


def _resized(
    model: nn.Module, hyper: Collapsed, graph: ChannelGraph, flat: Tensor, state: Mapping[str, Tensor]
) -> Iterator[State]:
    """For each convolution with a batch norm behind it, the tensors of both at the size of its kernel."""
    norms = norm_behind(model, graph)
    alive = flat.ne(0).to(flat.dtype)
    for name in hyper.wiring.generated:
        layer = name.rpartition(".")[0]
        axes = hyper.wiring.made.get(name, ())
        if layer not in norms or len(axes) != 1 or len(axes[0].index) != len(state[f"{norms[layer]}.weight"]):
            continue
        dim = axes[0].dim
        kernel = hyper.kernel(name, model) * hyper.wiring.factor(name, torch.ones_like(flat), alive, state[name].ndim)
        wanted = kernel.movedim(dim, 0).flatten(1).norm(dim=1)
        found = state[name].movedim(dim, 0).flatten(1).norm(dim=1)
        usable = (wanted > 0) & (found > 0)
        ratio = torch.where(usable, wanted, 1.0) / torch.where(usable, found, 1.0)
        yield _scaled(model.get_submodule(norms[layer]), layer, norms[layer], dim, ratio, state)


def _scaled(norm: nn.Module, layer: str, norm_name: str, dim: int, ratio: Tensor, state: Mapping[str, Tensor]) -> State:
    """Filters times `ratio` `(channels,)`, and the batch norm that gives the same outputs for them in eval mode."""
    weight, bias = state[f"{layer}.weight"], state.get(f"{layer}.bias")
    variance, epsilon = state[f"{norm_name}.running_var"], float(norm.eps)  # type: ignore[arg-type]
    larger = variance * ratio.square()
    gain = ((larger + epsilon) / (variance + epsilon)).sqrt() / ratio
    change = {
        f"{layer}.weight": weight * ratio.reshape([-1 if d == dim else 1 for d in range(weight.ndim)]),
        f"{norm_name}.weight": state[f"{norm_name}.weight"] * gain,
        f"{norm_name}.running_mean": state[f"{norm_name}.running_mean"] * ratio,
        f"{norm_name}.running_var": larger,
    }
    return change if bias is None else {**change, f"{layer}.bias": bias * ratio}


def _same_function(model: nn.Module, graph: ChannelGraph, state: State, change: State) -> bool:
    """Whether the network computes the same on the graph's example with the change."""
    probe = copy.deepcopy(model).eval()
    device = next(model.parameters()).device
    example = tuple(part.to(device) for part in graph.example)
    before = functional_call(probe, dict(state), example)
    after = functional_call(probe, {**state, **change}, example)
    pairs = list(zip(_tensors(before), _tensors(after), strict=True))
    return all(float((a - b).abs().max()) <= _EQUAL * float(a.abs().max()) + 1e-12 for a, b in pairs)


def _tensors(outputs: object) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    return [tensor for part in outputs for tensor in _tensors(part)] if isinstance(outputs, tuple | list) else []
