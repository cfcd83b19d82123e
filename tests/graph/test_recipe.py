"""A recipe survives JSON and rebuilds the cut network from a fresh one."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from traced_families import random_keep, traced

from hwprune.core.errors import GraphError
from hwprune.graph import Recipe, apply_recipe, cut
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
