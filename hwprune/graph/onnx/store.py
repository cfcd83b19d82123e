"""What an ONNX template consists of, and its two files: `dense.onnx` and `dense.json`.

The files may come from anywhere, so that reading them checks everything again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from hwprune.core.errors import GraphError
from hwprune.core.files import atomic_write_bytes, read_json, write_json
from hwprune.graph.onnx.cut import Alive
from hwprune.graph.onnx.fold import TensorLabels
from hwprune.graph.onnx.labels import Labels
from hwprune.graph.onnx.network import (
    SIZE_LIMIT_BYTES,
    Array,
    Ints,
    Network,
    from_model,
    to_model,
    with_inferred_shapes,
)
from hwprune.graph.onnx.units import Shapes, Units, labels_from_json, labels_to_json

SCHEMA = "hwprune.onnx_template/1"


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


@dataclass(frozen=True, eq=False)
class Parts:
    """The exported network, BatchNormalization not folded, and the unit of every index of its weights.

    `state`: each tensor's name in the module's state dict. `scales`: rows that a torch cut multiplies by
    `sqrt(kept / dense)`; the file holds the dense attention scale as a constant and needs them unmultiplied.
    """

    network: Network
    units: Units
    labels: TensorLabels
    state: Mapping[str, str]
    scales: tuple[Scale, ...] = ()


def write_parts(parts: Parts, folder: Path) -> None:
    """Write both files into a folder."""
    atomic_write_bytes(folder / "dense.onnx", to_model(parts.network).SerializeToString())
    document = {
        "schema": SCHEMA,
        "groups": [[name, size] for name, size in zip(parts.units.names, parts.units.sizes, strict=True)],
        "skippable": sorted(parts.units.skippable),
        "stateful": sorted(parts.network.stateful),
        "state": dict(parts.state),
        "scales": [[scale.tensor, scale.dim, scale.rows.tolist(), scale.group] for scale in parts.scales],
        "labels": labels_to_json(parts.labels),
    }
    write_json(folder / "dense.json", document)


def read_parts(folder: Path) -> Parts:
    """Read what `write_parts` wrote.

    Raises `GraphError` for a file that is not ONNX, is too large, refers to other files or does not fit its labels.
    """
    model = _read_model(folder / "dense.onnx")
    document = _read_document(folder / "dense.json")
    network = with_inferred_shapes(from_model(model, document["stateful"]))
    names, sizes = zip(*document["groups"], strict=True) if document["groups"] else ((), ())
    units = Units(tuple(names), tuple(sizes), frozenset(document["skippable"]))
    shapes = {name: network.shape(name) for name in network.stateful}
    labels = labels_from_json(document["labels"], units, shapes)
    return Parts(network, units, labels, document["state"], _read_scales(document["scales"], units, shapes))


def _read_model(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > SIZE_LIMIT_BYTES + 2**24:
            raise GraphError(f"{path} is too large for one ONNX file")
        model = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(model, full_check=True)
    except OSError as error:
        raise GraphError(f"cannot read {path}: {error.strerror}") from error
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"{path} is not a valid ONNX file") from error
    return model


def _read_scales(items: list[Any], units: Units, shapes: Shapes) -> tuple[Scale, ...]:
    try:
        scales = [Scale(str(name), int(dim), np.array(rows, np.int64), str(group)) for name, dim, rows, group in items]
    except (TypeError, ValueError) as error:
        raise GraphError(f"the attention scales of the ONNX template are malformed: {error}") from error
    for scale in scales:
        shape = shapes.get(scale.tensor, ())
        inside = 0 <= scale.dim < len(shape) and np.isin(scale.rows, np.arange(shape[scale.dim])).all()
        if not inside or scale.group not in units.names:
            raise GraphError(f"the attention scale of '{scale.tensor}' does not fit the ONNX template")
    return tuple(scales)


def _read_document(path: Path) -> dict[str, Any]:
    document = read_json(path)
    fields = {"groups": list, "skippable": list, "stateful": list, "state": dict, "scales": list, "labels": dict}
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise GraphError(f"{path} is not an ONNX template of this version (schema {SCHEMA})")
    for key, kind in fields.items():
        if not isinstance(document.get(key), kind):
            raise GraphError(f"{path}: '{key}' is missing or not a {kind.__name__}")
    names = [*document["skippable"], *document["stateful"], *document["state"].values()]
    if not all(isinstance(name, str) for name in names):
        raise GraphError(f"{path}: 'skippable', 'stateful' or 'state' hold something that is not a name")
    for item in document["groups"]:
        pair = isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], int)
        if not pair or item[1] < 1:
            raise GraphError(f"{path}: {item!r} in 'groups' is not a name and a number of units")
    return document
