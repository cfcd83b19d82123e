"""A network run with other tensors than its own, whatever names its own are registered under."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.func import functional_call


def called_with(model: nn.Module, tensors: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
    """The outputs with these parameters and buffers, by first name, in place of the model's own.

    `functional_call` by itself puts a tensor in once for every name it has. Into a module that is registered under two
    names it goes twice, and what is put back at the end is what was put in first. Here each place is filled once.
    """
    places = [
        (f"{path}.{name}" if path else name, tensor)
        for path, module in model.named_modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(recurse=False, remove_duplicate=False)
    ]
    own = dict(places)
    given = {id(own[name]): tensor for name, tensor in tensors.items()}
    filled = {place: given[id(tensor)] for place, tensor in places if id(tensor) in given}
    outputs: Tensor = functional_call(model, filled, inputs, tie_weights=False)
    return outputs
