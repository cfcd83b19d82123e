"""Records one real forward run: every ATen operator passes through the rules, attention as a whole.

The run happens on a copy of the model in eval mode without gradients, so any model that runs can be recorded:
control flow, frozen parameters, custom modules.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hwprune.core.errors import GraphError
from hwprune.graph.call import Call, tensors_in
from hwprune.graph.labels import Pin
from hwprune.graph.record import Place, Record
from hwprune.graph.rules import rule_of


def record_run(model: nn.Module, example: tuple[Tensor, ...]) -> Record:
    """The tape of `model(*example)`. Raises `GraphError` if the model does not run or returns no tensor."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise GraphError(
                f"'{name}' of {type(model).__name__} has no shape yet",
                hint="run the model once on the example input, then trace it",
            )
    model = copied(model).eval()
    record = Record(batch=max(1, int(example[0].shape[0]) if example[0].ndim else 1))
    for name, parameter in model.named_parameters():
        record.add_weight(name, parameter, is_parameter=True)
    for name, buffer in model.named_buffers():
        record.add_weight(name, buffer, is_parameter=False)
    # A view is a new tensor object: the caller's tensor may be a parameter of the model.
    inputs = tuple(tensor.detach() for tensor in example)
    for tensor in inputs:
        record.add_input(tensor)
    watch_modules(model, record.places)
    outputs = tensors_in(_run(model, inputs, record))
    if not outputs:
        raise GraphError(f"{type(model).__name__} returns no tensor", hint="forward must return tensors")
    for output in outputs:
        for factor in record.get(output).layout:
            channels = int(factor.ids.size)
            record.labels.pin(factor.ids.ravel(), Pin("output", "", "", channels, "it is an output of the network"))
    return record


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy; what `memo` holds under an object's id takes that object's place."""
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, ValueError) as error:
        raise GraphError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}",
            hint="modules must survive copy.deepcopy; an old-style weight_norm or a file handle does not",
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for use inside one of ours."""
    return f"{type(error).__name__}: {(str(error).strip() or '(no message)').splitlines()[0]}"


def watch_modules(model: nn.Module, places: list[Place]) -> None:
    """Keep the modules that run in `places`, innermost last. The hooks stay: the model is a copy.

    When a forward raises, the modules it passed through stay in the list, so the last one is where it happened.
    """

    def enter(path: str) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, args: object) -> None:
            places.append(Place(path, module))

        return hook

    def leave(module: nn.Module, args: object, output: object) -> None:
        while places and places.pop().module is not module:
            pass

    for path, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_pre_hook(enter(path), prepend=True)
            module.register_forward_hook(leave)


def _run(model: nn.Module, inputs: Sequence[Tensor], record: Record) -> object:
    tape = _Tape(record)
    try:
        with torch.no_grad(), plain_attention(), warnings.catch_warnings(), _Attention(tape), tape:
            warnings.simplefilter("ignore")
            return model(*inputs)
    except GraphError:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        where = record.places[-1].path if record.places else ""
        raise GraphError(
            f"{type(model).__name__} does not run on the example input {shapes}: {first_line(error)}",
            hint=f"the error arose in module '{where}'" if where else "check the shape of the example input",
        ) from error


@contextmanager
def plain_attention() -> Iterator[None]:
    """Switch off the fused fast path of `nn.MultiheadAttention`, which no tape can look into."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, record: Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record
        self.paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its whole compiler at the first operator, which takes seconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = None if self.paused else Call.of(self.record, func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        if call is not None:
            apply_rule(call.finished(out))
        return out


def apply_rule(call: Call) -> None:
    """Run the operator's rule; without one, pin whatever labels reach it."""
    found = rule_of(call.name)
    if found is None and call.pointwise:
        found = rule_of("detach")
    if found is not None and call.outputs and call.inputs:
        found(call)
        return
    for tensor in call.inputs:
        for factor in call.layout(tensor):
            call.pin(factor.ids, f"hwprune has no rule for the operator '{call.name}'")
    for number in range(len(call.outputs)):
        call.put(output=number)


class _Attention(TorchFunctionMode):
    """Hands `scaled_dot_product_attention` to its rule in one piece: its kernels differ and hide the scale."""

    def __init__(self, tape: _Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or self.tape.paused:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        call = Call(self.tape.record, "scaled_dot_product_attention", arguments)
        self.tape.paused = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.tape.paused = False
        apply_rule(call.finished(out))
        return out
