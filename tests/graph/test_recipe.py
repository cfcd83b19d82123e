"""A recipe survives JSON and rebuilds the cut network from a fresh one."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from traced_families import random_keep, traced

from hwprune.core.errors import GraphError
from hwprune.graph import Recipe, apply_recipe, cut, trace
from hwprune.graph.call import tensors_in
from hwprune.testing.networks import FAMILIES, build


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_round_trip_onto_a_fresh_model(family: str) -> None:
    model, example, graph = traced(family)
    keep = random_keep(graph, 2)
    small = cut(model, graph, keep)
    recipe = Recipe.of(model, graph, keep)
    loaded = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert loaded == recipe
    fresh, _ = build(family, seed=1)
    rebuilt = apply_recipe(loaded, fresh)
    rebuilt.load_state_dict(small.state_dict())
    pairs = zip(tensors_in(small(*example)), tensors_in(rebuilt(*example)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_attributes_follow_the_weights() -> None:
    model, _, graph = traced("mobilenetv1")
    small = cut(model, graph, {"stem.0": [0, 2, 3]})
    depthwise = small.blocks[0][0][0]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (3, 3, 3)
    assert small.stem[1].num_features == 3
    assert small.blocks[0][1][0].in_channels == 3


def test_the_hash_is_of_the_dense_weights() -> None:
    model, _, graph = traced("chain")
    first = Recipe.of(model, graph, {"conv1": [0]})
    assert first.dense_hash == Recipe.of(model, graph, {"conv1": [1]}).dense_hash
    other, _ = build("chain", seed=1)
    assert first.dense_hash != Recipe.of(other, graph, {"conv1": [0]}).dense_hash


def test_another_model_is_refused() -> None:
    model, _, graph = traced("chain")
    recipe = Recipe.of(model, graph, {"conv1": [0]})
    with pytest.raises(GraphError, match=r"the model has no 'conv1\.weight'"):
        apply_recipe(recipe, nn.Linear(2, 2))
    wide, _ = build("chain")
    wide.conv1 = nn.Conv2d(3, 9, 3)
    with pytest.raises(GraphError, match=r"'conv1.weight' has shape \(9, 3, 3, 3\), the traced model had \(8,"):
        cut(wide, graph, {"conv1": [0]})
    with pytest.raises(GraphError, match="not a recipe: its schema is 'x/1'"):
        Recipe.from_json({"schema": "x/1"})


class Attention(nn.Module):
    """Heads whose size stands in an attribute, and in a tuple; the queries are scaled when heads shrink."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.size, self.dims = 6, (2, 6)
        self.qkv, self.fc = nn.Linear(5, 36), nn.Linear(12, 4)
        self.more = nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth - 1)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, *self.dims).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, 2 * self.size)
        return self.more(self.fc(y))  # type: ignore[no-any-return]


@cache
def _document() -> dict[str, Any]:
    """The recipe of a network in which attributes and scales follow the cut."""
    graph = trace(Attention().eval(), torch.randn(2, 3, 5))
    keep = {group.name: [0, 2, 5] for group in graph.removable}
    return Recipe.of(Attention(), graph, keep).to_json()


def _applied(document: Any, model: nn.Module | None = None) -> nn.Module:
    return apply_recipe(Recipe.from_json(document), model or Attention())


def _changed(*where: Any, to: Any) -> dict[str, Any]:
    """The document with one place in it changed."""
    changed = copy.deepcopy(_document())
    place: Any = changed
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = to
    return changed


def test_the_recipe_that_is_damaged_below_is_whole() -> None:
    document = _document()
    small = _applied(document)
    assert (small.size, small.dims, tuple(small.qkv.weight.shape)) == (3, (2, 3), (18, 5))
    assert [scale["parameter"] for scale in document["scales"]] == ["qkv.weight", "qkv.bias"]
    assert ["", "dims", 1, 3] in document["edits"]


@pytest.mark.parametrize("key", ["keep", "kept", "edits", "scales", "sizes", "dense_hash", "versions"])
@pytest.mark.parametrize("value", [["x"], 3, None, {"qkv.weight": 1}, [1], [[1, 2, 3, 4]], {"qkv.weight": {"x": [0]}}])
def test_a_field_of_another_kind_is_refused(key: str, value: object) -> None:
    good = _document()
    for document in ({**good, key: value}, {name: item for name, item in good.items() if name != key}):
        with pytest.raises(GraphError, match="the recipe is damaged"):
            _applied(document)


@pytest.mark.parametrize(
    ("where", "to", "message"),
    [
        (("keep", "qkv"), [2, 2], "units kept of group 'qkv' are not ascending"),
        (("keep", "qkv"), [-1], "-1 is not an index"),
        (("kept", "qkv.weight", "0"), [0, 99], r"'qkv.weight', dimension 0, do not fit \(36, 5\)"),
        (("kept", "qkv.weight", "0"), [0, 0, 5], "do not fit"),
        (("kept", "qkv.weight", "0"), [True, 2], "True is not an index"),
        (("kept", "qkv.weight", "0"), [10**30], "0 is not an index"),
        (("kept", "qkv.weight", "0"), "01", "is not a list"),
        (("kept", "qkv.weight", "7"), [0], "dimension 7, do not fit"),
        (("kept", "nothing"), {"0": [0]}, "cuts 'nothing', which is no parameter"),
        (("kept", "qkv.bias"), {"0": [0]}, "'qkv.weight' and 'qkv.bias' in different ways"),
        (("kept", "qkv.bias"), {}, "'qkv.weight' and 'qkv.bias' in different ways"),
        (("edits",), [], "does not say what 'out_features' of module 'qkv' becomes"),
        (("edits", 0), ["qkv", "out_features", None, 17], "sets 'out_features' of module 'qkv' to 17"),
        (("edits", 0), ["qkv", "forward", None, 3], "sets 'forward' of module 'qkv' to 3, which no cut does"),
        (("edits", -1), ["zz", "size", None, 3], "there is no such module"),
        (("edits", -1), ["", "size", 0, 3], "which no cut does"),
        (("edits", -1), ["", "dims", 2, 3], "which no cut does"),
        (("edits", -1), ["", "size", None, 7], "sets 'size' of module '' to 7"),
        (("edits", -1), ["", "forward", None, 3], "which no cut does"),
        (("edits", -1), ["", "training", None, 0], "which no cut does"),
        (("edits", -1), ["", "_version", None, 0], "which no cut does"),
        (("edits", -1), ["fc", "in_features", None, 12], "which no cut does"),
        (("edits", -1), ["", "size", 3], "missing 1 required positional argument"),
        (("scales", 0, "parameter"), "nothing", "scales 'nothing', which is no parameter"),
        (("scales", 0, "positions"), [0, 77], "scales rows of 'qkv.weight' that are not there"),
        (("scales", 0, "positions"), [1, 0], "scales rows"),
        (("scales", 0, "dim"), 5, "scales rows"),
        (("scales", 0, "factor"), float("nan"), "or by nan"),
        (("scales", 0, "factor"), float("inf"), "or by inf"),
        (("scales", 0, "factor"), -1.0, "or by -1.0"),
        (("scales", 0, "factor"), "1", "'1' is not a number"),
        (("sizes",), {}, "the model has 'qkv.weight', the traced model had not"),
    ],
)  # fmt: skip
def test_a_place_that_no_cut_writes_is_refused(where: tuple[Any, ...], to: object, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        _applied(_changed(*where, to=to))


def test_documents_that_are_no_recipe_at_all() -> None:
    for document in ([1], "recipe", None):
        with pytest.raises(GraphError, match="not a recipe: its schema is None"):
            Recipe.from_json(document)  # type: ignore[arg-type]


def test_a_model_with_further_layers_is_refused() -> None:
    with pytest.raises(GraphError, match=r"the model has 'more.0.weight', the traced model had not"):
        _applied(_document(), Attention(depth=2))
