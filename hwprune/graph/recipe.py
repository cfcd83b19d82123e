"""A cut as data: which indices stay, which attributes change, which rows are rescaled. JSON, no pickled modules."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.core.errors import GraphError
from hwprune.graph.channel_graph import ChannelGraph, Keep
from hwprune.graph.edits import Edit, own_tensors, typed_edits
from hwprune.graph.tape import first_line

_SCHEMA = "hwprune.recipe/1"


@dataclass(frozen=True)
class Scale:
    """Rows of a cut parameter (positions after the cut along `dim`) and the factor they are multiplied with."""

    parameter: str
    dim: int
    positions: tuple[int, ...]
    factor: float


@dataclass(frozen=True)
class Recipe:
    """Everything that turns a fresh dense module into the cut one; the weights come from a state dict beside it.

    `keep`: group -> units that stay. `kept`: parameter or buffer -> dim -> indices that stay. `edits`: (module,
    attribute, index inside a tuple or None, new value). `sizes`: dense shapes. `dense_hash`: of the dense state.
    """

    keep: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    edits: tuple[Edit, ...]
    dense_hash: str
    versions: Mapping[str, str]
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scales: tuple[Scale, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, keep: Keep, *, hashed: bool = True) -> Recipe:
        """The recipe of `cut(model, graph, keep)`. Raises `GraphError` if the model is not the traced one."""
        check_model(model, graph.sizes)
        checked = {name: tuple(kept.tolist()) for name, kept in graph.check_keep(keep).items()}
        kept = {
            name: {dim: tuple(stay.tolist()) for dim, stay in sorted(dims.items())}
            for name, dims in graph.kept_indices(keep).items()
        }
        return cls(
            keep=checked,
            kept=kept,
            edits=_edits(model, graph, keep, kept),
            dense_hash=state_hash(model) if hashed else "",
            versions={"torch": str(torch.__version__)},
            sizes=dict(graph.sizes),
            scales=_scales(graph, checked),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal recipe."""
        return {
            "schema": _SCHEMA,
            "keep": {name: list(kept) for name, kept in self.keep.items()},
            "kept": {name: {str(dim): list(stay) for dim, stay in dims.items()} for name, dims in self.kept.items()},
            "edits": [list(edit) for edit in self.edits],
            "scales": [
                {"parameter": s.parameter, "dim": s.dim, "positions": list(s.positions), "factor": s.factor}
                for s in self.scales
            ],
            "sizes": {name: list(shape) for name, shape in self.sizes.items()},
            "dense_hash": self.dense_hash,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote. Raises `GraphError` for another kind of document or a damaged one.

        What it says is only checked against a model by `apply_recipe`.
        """
        schema = document.get("schema") if isinstance(document, Mapping) else None
        if schema != _SCHEMA:
            raise GraphError(f"not a recipe: its schema is {schema!r}", hint=f"expected {_SCHEMA}")
        try:
            return cls(
                keep={name: _indices(kept) for name, kept in document["keep"].items()},
                kept={
                    name: {int(dim): _indices(stay) for dim, stay in dims.items()}
                    for name, dims in document["kept"].items()
                },
                edits=tuple(_edit(*entry) for entry in document["edits"]),
                dense_hash=_text(document["dense_hash"]),
                versions={name: _text(version) for name, version in document["versions"].items()},
                sizes={name: _indices(shape) for name, shape in document["sizes"].items()},
                scales=tuple(_scale(entry) for entry in document["scales"]),
            )
        except KeyError as error:
            raise damaged(f"it has no {error}") from error
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise damaged(first_line(error)) from error


def damaged(what: str) -> GraphError:
    """The error for a recipe in which something cannot be right."""
    return GraphError(f"the recipe is damaged: {what}", hint="take the recipe.json that the run wrote, unchanged")


def _indices(value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r:.40} is not a list")
    return tuple(_integer(item) for item in value)


def _integer(value: object) -> int:
    # Anything larger would not fit into the arrays of indices.
    if type(value) is not int or not 0 <= value < 2**31:
        raise TypeError(f"{value!r:.40} is not an index or a size")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _edit(module: object, attribute: object, index: object, value: object) -> Edit:
    return _text(module), _text(attribute), None if index is None else _integer(index), _integer(value)


def _scale(entry: Mapping[str, object]) -> Scale:
    factor = entry["factor"]
    if not isinstance(factor, (int, float)):
        raise TypeError(f"{factor!r:.40} is not a number")
    return Scale(_text(entry["parameter"]), _integer(entry["dim"]), _indices(entry["positions"]), float(factor))


def check_model(model: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `GraphError` naming the first parameter or buffer that is missing or has another shape."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, shape in sizes.items():
        if name not in own:
            raise GraphError(f"the model has no '{name}'", hint="use a model built like the one that was traced")
        if tuple(own[name].shape) != tuple(shape):
            raise GraphError(
                f"'{name}' has shape {tuple(own[name].shape)}, the traced model had {tuple(shape)}",
                hint="use a model built like the one that was traced",
            )


def state_hash(model: nn.Module) -> str:
    """sha256 over names, types, shapes and values of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def layer_edits(
    model: nn.Module, kept: Mapping[str, Mapping[int, tuple[int, ...]]]
) -> dict[tuple[str, str, int | None], int]:
    """What torch's layers say of their own shape and must say anew: (module, attribute, index) -> value."""
    edits: dict[tuple[str, str, int | None], int] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = own_tensors(module)
        if any(prefix + name in kept for name in own):
            shapes = {name: _new_shape(tensor, kept.get(prefix + name, {})) for name, tensor in own.items()}
            for where, attribute, index, value in typed_edits(path, module, shapes):
                edits[where, attribute, index] = value
    return edits


def _edits(
    model: nn.Module, graph: ChannelGraph, keep: Keep, kept: Mapping[str, Mapping[int, tuple[int, ...]]]
) -> tuple[Edit, ...]:
    edits = layer_edits(model, kept)
    widths = dict(graph.widths_of(keep))
    for edit in graph.edits:
        if any(group in keep for group, _ in edit.value.terms):
            edits[edit.module, edit.attribute, edit.index] = edit.value.at(widths)
    return tuple((module, attribute, index, value) for (module, attribute, index), value in edits.items())


def _new_shape(tensor: Tensor, dims: Mapping[int, tuple[int, ...]]) -> torch.Size:
    return torch.Size(len(dims[dim]) if dim in dims else size for dim, size in enumerate(tensor.shape))


def _scales(graph: ChannelGraph, keep: Mapping[str, tuple[int, ...]]) -> tuple[Scale, ...]:
    indices = graph.kept_indices(keep)
    result = []
    for item in graph.query_scales:
        group = graph.group(item.group)
        if item.group not in keep or len(keep[item.group]) == group.units:
            continue
        stay = indices[item.parameter][item.dim]
        positions = np.flatnonzero(np.isin(stay, item.positions))
        factor = math.sqrt(len(keep[item.group]) / group.units)
        result.append(Scale(item.parameter, item.dim, tuple(positions.tolist()), factor))
    return tuple(result)
