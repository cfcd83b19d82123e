"""The dense network exported once, and the ONNX file of any sub-network by cutting it.

A torch export takes seconds; a cut takes milliseconds, because the walk that finds what each removed unit means for
every initialiser and shape constant is done once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from torch import Tensor, nn

from hwprune.core.errors import GraphError
from hwprune.core.files import atomic_write_bytes, read_json, write_json
from hwprune.graph.onnx_cut import Alive, Cutter
from hwprune.graph.onnx_export import export_network, shared_names
from hwprune.graph.onnx_fold import TensorLabels, fold_batch_norms
from hwprune.graph.onnx_labels import Labels, plan_cuts
from hwprune.graph.onnx_network import (
    SIZE_LIMIT_BYTES,
    Array,
    Ints,
    Network,
    from_model,
    to_model,
    with_inferred_shapes,
)
from hwprune.graph.onnx_units import Shapes, Units, find_labels, labels_from_json, labels_to_json, verify_labels

SCHEMA = "hwprune.onnx_template/1"


class GroupLike(Protocol):
    """What a template reads of a `ChannelGroup`."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> int: ...
    @property
    def removable(self) -> bool: ...


class ScaleLike(Protocol):
    """Rows of a weight that a torch cut multiplies by `sqrt(kept / dense)` to undo a changed attention scale."""

    @property
    def parameter(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def positions(self) -> Ints: ...
    @property
    def group(self) -> str: ...


class GraphLike(Protocol):
    """What a template reads of a `ChannelGraph`."""

    @property
    def groups(self) -> Sequence[GroupLike]: ...
    @property
    def example(self) -> tuple[Tensor, ...]: ...
    @property
    def query_scales(self) -> Sequence[ScaleLike]: ...
    def kept_indices(self, keep: Mapping[str, Sequence[int]]) -> Mapping[str, Mapping[int, Ints]]: ...


@dataclass(frozen=True, eq=False)
class Scale:
    """Rows of a tensor along `dim` that follow the attention scale of a group."""

    tensor: str
    dim: int
    rows: Ints
    group: str

    @classmethod
    def of(cls, item: ScaleLike, alias: Mapping[str, str]) -> Scale:
        """From a graph's entry; `alias` gives the tensor's name in the ONNX file."""
        name = alias.get(item.parameter, item.parameter)
        return cls(name, item.dim, np.asarray(item.positions, np.int64), item.group)

    def undo(self, array: Array, labels: Labels | None, alive: Alive, ratio: float) -> Array:
        """The cut tensor with these rows divided by `sqrt(ratio)`; `labels` are the dense ones along `dim`."""
        rows = self.rows
        if labels is not None:
            rows = (np.cumsum(alive[labels]) - 1)[rows[alive[labels[rows]]]]
        factors = np.ones(array.shape[self.dim])
        factors[rows] = ratio**-0.5
        return (array * factors.reshape(-1, *(1,) * (array.ndim - self.dim - 1))).astype(array.dtype)


class OnnxTemplate:
    """The dense network as ONNX and everything needed to cut it to any widths.

    In every file it makes, BatchNormalization is folded, the inputs and outputs are called `input` and `output`
    (numbered where there are several), and the name of a node begins with the dotted path of its module.
    """

    def __init__(
        self,
        network: Network,
        units: Units,
        labels: TensorLabels,
        state: Mapping[str, str],
        scales: Sequence[Scale],
    ) -> None:
        """`network` is unfolded; `state` maps each of its tensors to its name in the module's state dict.

        `scales`: rows that a torch cut multiplies by `sqrt(kept / dense)`. The file holds the dense attention scale
        as a constant and needs them unmultiplied.
        """
        self._network = network
        self._scales = tuple(scales)
        self._units = units
        self._labels = labels
        self._state = dict(state)
        self._folded = Cutter(plan_cuts(*fold_batch_norms(network, labels)))

    @classmethod
    def export(cls, model: nn.Module, graph: GraphLike) -> OnnxTemplate:
        """Export the dense module once, in eval mode and with the batch of `graph.example`; takes seconds.

        Raises `GraphError` when torch cannot export the module, or when the channels of a group cannot be followed
        through the exported operators; the message names the operator.
        """
        network = export_network(model, tuple(graph.example))
        removable = [group for group in graph.groups if group.removable and group.units > 1]
        units = Units(tuple(group.name for group in removable), tuple(group.units for group in removable))
        shapes = {name: network.shape(name) for name in network.stateful}
        alias = {other: name for name, others in shared_names(model).items() if name in shapes for other in others}

        def kept_indices(keep: Mapping[str, Sequence[int]]) -> dict[str, Mapping[int, Ints]]:
            return {alias.get(name, name): by_dim for name, by_dim in graph.kept_indices(keep).items()}

        labels = find_labels(units, kept_indices, shapes)
        verify_labels(units, labels, kept_indices, shapes)
        saved = model.state_dict().keys()
        state = {name: other for other, name in alias.items() if other in saved and name not in saved}
        state |= {name: name for name in shapes if name in saved}
        scales = [Scale.of(item, alias) for item in graph.query_scales]
        return cls(network, units, labels, state, [scale for scale in scales if scale.tensor in shapes])

    @cached_property
    def dense(self) -> bytes:
        """The dense network, BatchNormalization folded."""
        return self._folded.model_bytes(self._units.alive({}))

    def at(self, keep: Mapping[str, Sequence[int]]) -> bytes:
        """The dense network cut to the units in `keep` (group -> indices that stay; absent groups stay whole)."""
        return self._folded.model_bytes(self._units.alive(keep))

    def at_widths(self, widths: Mapping[str, int]) -> bytes:
        """The dense network cut to the first `widths[group]` units of each group: for measuring, not for shipping."""
        return self._folded.model_bytes(self._units.alive_first(widths))

    def with_state(self, keep: Mapping[str, Sequence[int]], state: Mapping[str, Tensor]) -> bytes:
        """The file to ship: the network cut to `keep` with the weights of the cut, finetuned module's state dict.

        Raises `GraphError`, naming the tensor and both shapes, when the state does not fit the cut.
        """
        alive = self._units.alive(keep)
        network = self._unfolded.network(alive)
        tensors = dict(network.tensors)
        for name, key in self._state.items():
            if name in tensors:
                tensors[name] = _state_array(state, key, tensors[name])
        for scale in self._scales:
            labels = self._labels.get(scale.tensor, {}).get(scale.dim)
            ratio = self._units.kept_ratio(scale.group, alive)
            tensors[scale.tensor] = scale.undo(tensors[scale.tensor], labels, alive, ratio)
        folded, _ = fold_batch_norms(replace(network, tensors=tensors), {})
        return bytes(to_model(folded).SerializeToString())

    def save(self, folder: Path) -> None:
        """Write `dense.onnx` (BatchNormalization not folded) and `dense.json` (groups, labels) into a folder."""
        atomic_write_bytes(Path(folder) / "dense.onnx", to_model(self._network).SerializeToString())
        document = {
            "schema": SCHEMA,
            "groups": [[name, size] for name, size in zip(self._units.names, self._units.sizes, strict=True)],
            "stateful": sorted(self._network.stateful),
            "state": self._state,
            "scales": [[scale.tensor, scale.dim, scale.rows.tolist(), scale.group] for scale in self._scales],
            "labels": labels_to_json(self._labels),
        }
        write_json(Path(folder) / "dense.json", document)

    @classmethod
    def load(cls, folder: Path) -> OnnxTemplate:
        """Read what `save` wrote; everything is checked again, since the files may come from anywhere.

        Raises `GraphError` for a file that is not ONNX, refers to other files, or does not fit its labels.
        """
        model = _read_model(Path(folder) / "dense.onnx")
        document = _read_document(Path(folder) / "dense.json")
        network = with_inferred_shapes(from_model(model, document["stateful"]))
        units = Units(tuple(name for name, _ in document["groups"]), tuple(size for _, size in document["groups"]))
        shapes = {name: network.shape(name) for name in network.stateful}
        labels = labels_from_json(document["labels"], units, shapes)
        return cls(network, units, labels, document["state"], _read_scales(document["scales"], units, shapes))

    @cached_property
    def _unfolded(self) -> Cutter:
        return Cutter(plan_cuts(self._network, self._labels))


def _state_array(state: Mapping[str, Tensor], key: str, cut: Array) -> Array:
    if key not in state:
        raise GraphError(f"the state has no tensor '{key}'", hint="pass state_dict() of the cut module")
    array = state[key].detach().cpu().numpy()
    if array.shape != cut.shape:
        raise GraphError(
            f"'{key}' has the shape {array.shape} in the state, the cut network needs {cut.shape}",
            hint="the state and the kept units must come from the same cut",
        )
    return array.astype(cut.dtype)


def _read_model(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > SIZE_LIMIT_BYTES + 2**24:
            raise GraphError(f"{path} is too large for one ONNX file")
        model = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(model)
    except OSError as error:
        raise GraphError(f"cannot read {path}: {error.strerror}") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise GraphError(f"{path} is not a valid ONNX file") from error
    return model


def _read_scales(items: list[Any], units: Units, shapes: Shapes) -> list[Scale]:
    try:
        scales = [Scale(str(name), int(dim), np.array(rows, np.int64), str(group)) for name, dim, rows, group in items]
    except (TypeError, ValueError) as error:
        raise GraphError(f"the attention scales of the ONNX template are malformed: {error}") from error
    for scale in scales:
        shape = shapes.get(scale.tensor, ())
        inside = 0 <= scale.dim < len(shape) and np.isin(scale.rows, np.arange(shape[scale.dim])).all()
        if not inside or scale.group not in units.names:
            raise GraphError(f"the attention scale of '{scale.tensor}' does not fit the ONNX template")
    return scales


def _read_document(path: Path) -> dict[str, Any]:
    document = read_json(path)
    fields = {"groups": list, "stateful": list, "state": dict, "scales": list, "labels": dict}
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise GraphError(f"{path} is not an ONNX template of this version (schema {SCHEMA})")
    for key, kind in fields.items():
        if not isinstance(document.get(key), kind):
            raise GraphError(f"{path}: '{key}' is missing or not a {kind.__name__}")
    for item in document["groups"]:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], int)):
            raise GraphError(f"{path}: {item!r} in 'groups' is not a name and a number of units")
    return document
