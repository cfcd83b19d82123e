"""Reading the unit of every index from a graph's answers about keep sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.core.errors import GraphError, UsageError
from hwprune.graph.onnx.labels import FIXED
from hwprune.graph.onnx.network import Ints
from hwprune.graph.onnx.units import Units, find_labels, verify_labels

Truth = dict[str, dict[int, Ints]]


def _answer(units: Units, truth: Truth, keep: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Ints]]:
    """What a graph says: indices that stay, of dims that shrink."""
    alive = units.alive(keep)
    result: dict[str, dict[int, Ints]] = {}
    for name, by_dim in truth.items():
        for dim, labels in by_dim.items():
            if not alive[labels].all():
                result.setdefault(name, {})[dim] = np.flatnonzero(alive[labels])
    return result


@st.composite
def _truths(draw: st.DrawFn) -> tuple[Units, Truth]:
    sizes = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=9)))
    units = Units(tuple(f"g{index}" for index in range(len(sizes))), sizes)
    label = st.integers(FIXED, units.total - 1)
    arrays = draw(st.lists(st.lists(label, min_size=1, max_size=12), min_size=1, max_size=6))
    truth: Truth = {}
    for index, array in enumerate(arrays):
        truth.setdefault(f"w{index // 2}", {})[index % 2] = np.array(array)
    return units, truth


@settings(max_examples=200, deadline=None)
@given(_truths())
def test_labels_are_found_from_answers_alone(case: tuple[Units, Truth]) -> None:
    units, truth = case
    shapes = {name: tuple(len(by_dim.get(dim, [0])) for dim in range(2)) for name, by_dim in truth.items()}
    # A group of one unit can lose nothing, so that its members cannot be told from what always stays.
    single = {units.offsets[name] for name, size in zip(units.names, units.sizes, strict=True) if size == 1}

    def kept_indices(keep: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Ints]]:
        assert all(len(indices) for indices in keep.values())
        return _answer(units, truth, keep)

    labels = find_labels(units, kept_indices, shapes)
    verify_labels(units, labels, kept_indices, shapes)
    for name, by_dim in truth.items():
        for dim, expected in by_dim.items():
            wanted = np.where(np.isin(expected, list(single)), FIXED, expected)
            found = labels.get(name, {}).get(dim, np.full(len(wanted), FIXED))
            assert np.array_equal(np.where(np.isin(found, list(single)), FIXED, found), wanted)


def test_an_index_of_two_groups_is_an_error() -> None:
    units = Units(("a", "b"), (4, 4))

    def kept_indices(keep: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Ints]]:
        alive = units.alive(keep)
        return {"w": {0: np.flatnonzero(alive[:4] & alive[4:8])}}

    shapes = {"w": (4, 1)}
    with pytest.raises(GraphError, match="channels of 'w', dimension 0, do not belong to one group each"):
        verify_labels(units, find_labels(units, kept_indices, shapes), kept_indices, shapes)


def test_living_units() -> None:
    units = Units(("a", "b"), (3, 2))
    assert units.alive({"b": [1]}).tolist() == [True, True, True, False, True, True]
    assert units.alive_first({"a": 1}).tolist() == [True, False, False, True, True, True]


def test_wrong_widths_and_units_are_named() -> None:
    units = Units(("layer1", "layer2"), (3, 2))
    with pytest.raises(UsageError, match=r"unknown removable channel group 'layer3'. Did you mean"):
        units.alive({"layer3": [0]})
    with pytest.raises(GraphError, match=r"width 4 of group 'layer1' is not in 1\.\.3"):
        units.alive_first({"layer1": 4})
    with pytest.raises(GraphError, match=r"kept units of group 'layer2' are empty or not in 0\.\.1"):
        units.alive({"layer2": []})
