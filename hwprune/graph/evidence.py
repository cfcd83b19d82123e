"""What discrete outputs were decided from: a class or a mask hides small mistakes, the scores before it do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from hwprune.graph.call import tensors_in

_ROUNDING = ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside")


@dataclass(frozen=True, eq=False)
class Result:
    """One output of a network. `grounds`: the numbers that it, or a number it depends on, was decided from."""

    output: Tensor
    grounds: tuple[Tensor, ...] = ()

    @property
    def is_decided(self) -> bool:
        """True for an output of integers or truth values with known grounds."""
        return bool(self.grounds) and not is_number(self.output)

    @property
    def is_telling(self) -> bool:
        """True if there are different numbers in the output or its grounds, so that comparing them proves anything."""
        return any(is_number(tensor) and not is_constant(tensor) for tensor in (self.output, *self.grounds))


class Evidence(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows decisions through a run. `constants`: tensors of one equal number count as decided as well."""

    def __init__(self, *, constants: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._constants = constants
        self._known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def results(self, outputs: Sequence[Tensor]) -> list[Result]:
        """The outputs of the run with their grounds."""
        return [Result(output, self._grounds(output)) for output in outputs]

    def _grounds(self, tensor: Tensor) -> tuple[Tensor, ...]:
        known = self._known
        found: tuple[Tensor, ...] = known.get(tensor, ())  # type: ignore[no-untyped-call]
        if not found and tensor._is_view() and tensor._base is not None:
            found = known.get(tensor._base, ())  # type: ignore[no-untyped-call]
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = tensors_in((args, kwargs))
        inherited = {id(ground): ground for tensor in inputs for ground in self._grounds(tensor)}
        rounds = func._schema.name.removeprefix("aten::") in _ROUNDING
        for output in tensors_in(out):
            decides = rounds or not is_number(output) or (self._constants and is_constant(output))
            own = {id(tensor): tensor for tensor in inputs if decides and is_number(tensor) and tensor is not output}
            grounds = tuple({**inherited, **own}.values())
            if grounds:
                self._known[output] = grounds
                if output._is_view() and output._base is not None:
                    self._known[output._base] = grounds
        return out


def is_number(tensor: Tensor) -> bool:
    """True for a type in which a small mistake makes a small difference."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_constant(tensor: Tensor) -> bool:
    """True if all its numbers, more than one, are equal."""
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
