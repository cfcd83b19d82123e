"""What is noted while the network runs: the layout of every tensor, the operators, the contractions, the pins."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from hwprune.graph.labels import Labels, Pin
from hwprune.graph.layout import Factor, Ids, Layout, factor_on

_LIBRARIES = ("torch.", "hwprune.graph.")


@dataclass(eq=False)
class OpRecord:
    """An operator of the dense run; `in_ids`, `out_ids` and (for depthwise) `groups` hold one label a channel."""

    name: str
    kind: str
    in_ids: Ids
    out_ids: Ids
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: Ids | int = 1
    in_size: tuple[int, int] = (1, 1)
    out_size: tuple[int, int] = (1, 1)
    batch: int = 1
    fused: str = ""
    before: OpRecord | None = None


@dataclass(eq=False)
class TensorRecord:
    """What is known of one tensor: its labels, whether it depends on the input, and the operator that made it."""

    layout: Layout
    from_input: bool
    op: OpRecord | None = None


@dataclass(eq=False)
class Place:
    """A module whose forward is running."""

    path: str
    module: nn.Module

    @property
    def is_library_leaf(self) -> bool:
        """True for modules such as `nn.Conv2d`: one operator, which bears the module's name."""
        return type(self.module).__module__.startswith("torch.nn.") and not any(True for _ in self.module.children())


@dataclass(eq=False)
class Record:
    """The tape of one forward run."""

    labels: Labels = field(default_factory=Labels)
    ops: list[OpRecord] = field(default_factory=list)
    consumed: list[Ids] = field(default_factory=list)
    gated: list[Ids] = field(default_factory=list)
    attention_queries: list[Ids] = field(default_factory=list)
    inexact: list[tuple[Ids, Pin]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    counted: list[tuple[str, str, Ids]] = field(default_factory=list)
    batch: int = 1
    _tensors: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    _names: Counter[str] = field(default_factory=Counter)

    def add_weight(self, name: str, tensor: Tensor, *, is_parameter: bool) -> None:
        """Give fresh labels to every dim of a parameter or buffer."""
        factors = [
            Factor((dim,), self.labels.fresh(name, dim, size, is_parameter=is_parameter), dim)
            for dim, size in enumerate(tensor.shape)
            if size > 1
        ]
        self._tensors[tensor] = TensorRecord(tuple(factors), from_input=False)

    def count_by_attribute(self, value: int, taken: set[str]) -> Ids | None:
        """Labels for `value` new channels, if the running module keeps that number in an attribute not in `taken`.

        The attribute then follows the channels that stay.
        """
        place = self.places[-1] if self.places else None
        for attribute, own in vars(place.module).items() if place is not None else ():
            if type(own) is int and own == value > 1 and attribute not in taken and place is not None:
                taken.add(attribute)
                ids = self.labels.fresh(f"{place.path}:{attribute}", 0, value, is_parameter=False, is_virtual=True)
                self.counted.append((place.path, attribute, ids))
                return ids
        return None

    def add_input(self, tensor: Tensor) -> None:
        """An input of the network: its channels are fixed."""
        self._tensors[tensor] = TensorRecord((), from_input=True)

    def get(self, tensor: Tensor) -> TensorRecord:
        """What is known of the tensor; a tensor the tape never saw is a constant without labels."""
        found: TensorRecord | None = self._tensors.get(tensor)  # type: ignore[no-untyped-call]
        found = found if found is not None else TensorRecord((), from_input=False)
        # Another view of the same memory may have been written to since this one was made.
        if not found.from_input and tensor._is_view() and tensor._base is not None:
            found.from_input = self.get(tensor._base).from_input
        return found

    def put(self, tensor: Tensor, record: TensorRecord) -> None:
        """Note what is known of an operator's output. Who writes to a part of a tensor changes the whole of it."""
        self._tensors[tensor] = record
        if record.from_input and tensor._is_view() and tensor._base is not None:
            whole = self.get(tensor._base)
            if not whole.from_input:
                whole.from_input = True
                self._tensors[tensor._base] = whole

    def weight_name(self, tensor: Tensor) -> str | None:
        """The name of the parameter that the tensor is or is a view of, None without labels."""
        for factor in self.get(tensor).layout:
            label = int(factor.ids.flat[0])
            if label:
                return self.labels.source_of(label).name
        return None

    def pin(self, ids: Ids, op: str, reason: str) -> None:
        """Pin labels because of what the operator running now does to them."""
        channels = int(np.unique(ids[ids != 0]).size)
        if channels:
            path = self.places[-1].path if self.places else ""
            self.labels.pin(ids, Pin(op, path, user_line(), channels, reason))

    def unite(self, left: Ids, right: Ids, op: str) -> None:
        """Unite two arrays of labels; channels that meet fixed ones become fixed."""
        self.pin(self.labels.unite(left, right), op, "it joins them with channels that cannot be removed")

    def op_name(self, kind: str, weight: Tensor | None) -> str:
        """A unique name: the owner of the weight, or the library module that runs, else the module path + kind."""
        place = self.places[-1] if self.places else None
        owner = self.weight_name(weight) if weight is not None else None
        if owner is not None:
            name = owner.rpartition(".")[0]
        elif place is not None and place.is_library_leaf:
            name = place.path
        else:
            prefix = f"{place.path}.{kind}" if place is not None and place.path else kind
            self._names[prefix] += 1
            return f"{prefix}_{self._names[prefix] - 1}"
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}.{self._names[name] - 1}"


def user_line() -> str:
    """`file:line` of the innermost running frame that belongs neither to torch nor to this package."""
    frame = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "")) + "."
        if not module.startswith(_LIBRARIES):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


def channel_view(record: Record, tensor: Tensor) -> tuple[Ids, int, tuple[int, int]]:
    """The channels of an activation as `(labels, batch, (height, width))`: the labelled dims, else the usual one."""
    shape = tuple(tensor.shape)
    layout = record.get(tensor).layout
    if layout:
        # Tokens may be labelled too (by a position embedding): images have channels at 1, sequences at the end.
        usual = (1, len(shape) - 1) if len(shape) > 3 else (len(shape) - 1,)
        found = (factor_on(layout, dim) for dim in usual)
        factor = next((item for item in found if item is not None), max(layout, key=lambda item: item.ids.size))
        dims, ids = factor.dims, factor.ids.ravel()
    elif len(shape) > 1:
        dims = (len(shape) - 1 if len(shape) == 3 else 1,)
        ids = np.zeros(shape[dims[0]], np.int64)
    else:
        dims, ids = (), np.zeros(1, np.int64)
    rest = [size for dim, size in enumerate(shape) if dim not in dims and dim != 0]
    batch = shape[0] if shape and 0 not in dims else 1
    return ids, batch, image_size(rest)


def image_size(sizes: list[int] | torch.Size) -> tuple[int, int]:
    """(height, width) of any number of spatial sizes; all but the last are folded into the height."""
    if len(sizes) == 0:
        return 1, 1
    if len(sizes) == 1:
        return 1, int(sizes[0])
    return math.prod(sizes[:-1]), int(sizes[-1])


def labels_on(layout: Layout, dim: int, size: int) -> tuple[Ids, Factor | None]:
    """The labels along one dim (zeros where there are none) and the joint factor, if any, whose rows must be tied."""
    factor = factor_on(layout, dim)
    if factor is None:
        return np.zeros(size, np.int64), None
    if len(factor.dims) == 1:
        return factor.ids, None
    axis = factor.dims.index(dim)
    return np.moveaxis(factor.ids, axis, 0).reshape(size, -1)[:, 0].copy(), factor
