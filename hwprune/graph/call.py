"""One operator of the tape, as a rule sees it: arguments by name, labels in, labels out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.graph.layout import Factor, Ids, Layout, factor_on, rows, vector
from hwprune.graph.record import OpRecord, Record, TensorRecord, channel_view, labels_on

Rule = Callable[["Call"], None]
_RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these ATen operators (names without overload and trailing underscore)."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            _RULES[operator] = function
        return function

    return register


def rule_of(operator: str) -> Rule | None:
    """The rule of an operator, if there is one."""
    return _RULES.get(operator)


@cache
def _signature(func: torch._ops.OpOverload) -> tuple[tuple[str, object], ...]:
    return tuple((item.name, item.default_value) for item in func._schema.arguments)


class Call:
    """The operator that just ran, with its arguments and outputs, and the record to write to."""

    def __init__(self, record: Record, name: str, arguments: Mapping[str, object], *, pointwise: bool = False) -> None:
        self.record = record
        self.name = name
        self.pointwise = pointwise
        self.in_place = False
        self._arguments = arguments
        self.inputs = tuple(tensors_in(arguments.values()))
        self.outputs: tuple[Tensor, ...] = ()
        # Taken before any `put`: an operator in place has the same tensor as input and output.
        self._before = {id(tensor): record.get(tensor) for tensor in self.inputs}
        self.from_input = any(item.from_input for item in self._before.values())

    @classmethod
    def of(
        cls,
        record: Record,
        func: torch._ops.OpOverload,
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> Call:
        """The call of an ATen operator, its arguments bound by the operator's schema."""
        signature = _signature(func)
        arguments = dict(signature)
        arguments.update(zip((name for name, _ in signature), args, strict=False))
        arguments.update(kwargs)
        name = func._schema.name.removeprefix("aten::")
        in_place = name.endswith("_") and not name.endswith("__")
        call = cls(record, name[:-1] if in_place else name, arguments, pointwise=torch.Tag.pointwise in func.tags)
        call.in_place = in_place
        return call

    def finished(self, out: object) -> Call:
        """The same call with its outputs."""
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        self.outputs = tuple(output for output in outputs if isinstance(output, Tensor))
        return self

    def tensor(self, name: str) -> Tensor:
        """A tensor argument."""
        value = self._arguments[name]
        assert isinstance(value, Tensor), f"{self.name}: {name} is no tensor"
        return value

    def optional(self, name: str) -> Tensor | None:
        """A tensor argument that may be None or absent."""
        value = self._arguments.get(name)
        return value if isinstance(value, Tensor) else None

    def integer(self, name: str) -> int:
        """An int argument."""
        value = self._arguments[name]
        assert isinstance(value, int), f"{self.name}: {name} is no int"
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of ints; an int counts as a list of one, None as empty."""
        value = self._arguments.get(name)
        if value is None:
            return ()
        if isinstance(value, int):
            return (value,)
        assert isinstance(value, (list, tuple)), f"{self.name}: {name} is no list"
        return tuple(int(item) for item in value)

    def value(self, name: str) -> object:
        """Any argument."""
        return self._arguments.get(name)

    def dim(self, name: str, tensor: Tensor) -> int:
        """A dim argument, counted from the front."""
        return self.integer(name) % max(tensor.ndim, 1)

    def dims(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        """A list of dims, counted from the front; empty or None means all of them."""
        given = self.integers(name)
        return tuple(dim % max(tensor.ndim, 1) for dim in given) if given else tuple(range(tensor.ndim))

    def layout(self, tensor: Tensor) -> Layout:
        """The labels of a tensor."""
        return self.seen(tensor).layout

    def seen(self, tensor: Tensor) -> TensorRecord:
        """What was known of a tensor when the operator began."""
        return self._before.get(id(tensor)) or self.record.get(tensor)

    def labels(self, tensor: Tensor, dim: int) -> Ids:
        """The labels along one dim, `(size,)`, zeros where there are none; the rows of a joint factor are tied."""
        ids, joint = labels_on(self.layout(tensor), dim, tensor.shape[dim])
        if joint is not None:
            self.tie(rows(joint, dim))
        return ids

    def plain(self, layout: Layout) -> Layout:
        """The layout with every joint factor reduced to its preferred dim."""
        return tuple(self.reduced(factor, factor.preferred) for factor in layout)

    def reduced(self, factor: Factor, dim: int) -> Factor:
        """The factor along one of its dims only, the others tied."""
        if len(factor.dims) == 1:
            return factor
        matrix = rows(factor, dim)
        self.tie(matrix)
        return Factor((dim,), matrix[:, 0].copy(), dim)

    def tie(self, matrix: Ids) -> None:
        """All labels of a row of the matrix `(n, k)` are removed together."""
        if matrix.ndim == 2 and matrix.shape[1] > 1:
            self.unite(np.repeat(matrix[:, :1], matrix.shape[1] - 1, axis=1), matrix[:, 1:])

    def unite(self, left: Ids, right: Ids) -> None:
        """Labels at equal positions are removed together."""
        self.record.unite(left, right, self.name)

    def pin(self, ids: Ids, reason: str) -> None:
        """These labels can never be removed."""
        self.record.pin(ids, self.name, reason)

    def pin_factors(self, layout: Layout, reason: str) -> None:
        """All labels of these factors can never be removed."""
        for factor in layout:
            self.pin(factor.ids, reason)

    def keep_only(self, tensor: Tensor, dims: set[int], reason: str = "it mixes their positions") -> Layout:
        """The layout on these dims, joint factors reduced to them; labels elsewhere are pinned."""
        kept = []
        for factor in self.layout(tensor):
            inside = [dim for dim in factor.dims if dim in dims]
            if len(inside) == len(factor.dims):
                kept.append(factor)
            elif inside:
                kept.append(self.reduced(factor, factor.preferred if factor.preferred in inside else inside[-1]))
            else:
                self.pin(factor.ids, reason)
        return tuple(kept)

    def contract(self, left: Tensor, left_dim: int, right: Tensor, right_dim: int) -> None:
        """A sum of products over one dim of each: positions correspond, and whoever is a weight consumes them."""
        self.unite(self.labels(left, left_dim), self.labels(right, right_dim))
        self.consume(left, left_dim, right, right_dim)

    def consume(self, left: Tensor, left_dim: int, right: Tensor, right_dim: int) -> None:
        """Note where a gate on the contracted channels multiplies: at the weight, else at what produced `left`."""
        record = self.record
        for tensor, dim in ((right, right_dim), (left, left_dim)):
            if not self.seen(tensor).from_input:
                factor = factor_on(self.layout(tensor), dim)
                if factor is not None:
                    record.consumed.append(factor.ids.ravel())
                return
        factor = factor_on(self.layout(left), left_dim)
        if factor is not None:
            record.gated.append(factor.ids.ravel())

    def put(self, layout: Layout = (), *, output: int = 0, op: OpRecord | None = None) -> None:
        """Give an output its labels."""
        tensor = self.outputs[output]
        self.record.put(tensor, TensorRecord(layout, self.from_input, op))

    def put_vector(self, dim: int, ids: Ids, op: OpRecord | None = None) -> None:
        """Give the first output labels along one dim."""
        self.put(vector(dim, ids), op=op)

    def note(self, op: OpRecord) -> OpRecord | None:
        """Add an operator to the list of the network's operators, unless it computes weights from weights."""
        if not self.from_input:
            return None
        self.record.ops.append(op)
        return op

    def note_plain(self, kind: str, source: Tensor, fused: str = "", weight: Tensor | None = None) -> OpRecord | None:
        """Note an operator that works channel by channel; call it after `put`. Attaches it to the output."""
        if not self.from_input:
            return None
        in_ids, _, in_size = channel_view(self.record, source)
        out_ids, batch, out_size = channel_view(self.record, self.outputs[0])
        op = OpRecord(self.record.op_name(kind, weight), kind, in_ids, out_ids)
        op.in_size, op.out_size, op.batch, op.fused = in_size, out_size, batch, fused
        op.before = self.seen(source).op
        self.record.ops.append(op)
        self.record.get(self.outputs[0]).op = op
        return op


# What has no fields that could hold a tensor, or none that is a result.
_ATOMS: tuple[type, ...] = (
    *(type(None), int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format),
    *(nn.Module, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, torch.Generator),
)


def tensors_in(values: object) -> list[Tensor]:
    """All tensors of nested lists, tuples, sets, mappings and of the fields of any other object but modules and code.

    The fields of an object are taken once, however often it is found.
    """
    found: list[Tensor] = []
    _collect(values, found, set())
    return found


def _collect(value: object, found: list[Tensor], seen: set[int]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, _ATOMS):
        return
    elif isinstance(value, (list, tuple, set, frozenset, deque, type({}.values()))):
        for item in value:
            _collect(item, found, seen)
    elif isinstance(value, Mapping):
        _collect(tuple(value.values()), found, seen)
    elif id(value) not in seen:
        seen.add(id(value))
        _collect(_fields(value), found, seen)


def _fields(value: object) -> list[object]:
    slots = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    fields = [getattr(value, name) for name in slots if name != "__dict__" and hasattr(value, name)]
    return [*fields, *getattr(value, "__dict__", {}).values()]


def _names(slots: object) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots) if isinstance(slots, Iterable) else []
