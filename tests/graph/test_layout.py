"""Labels under reshapes, against brute force over every element."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwprune.graph.labels import Labels, Pin
from hwprune.graph.layout import Factor, blocks, renamed, reshaped, vector

SIZES = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)


@st.composite
def two_shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes of the same number of elements, made by merging neighbours of one finer shape."""
    finest = draw(SIZES)

    def merged() -> list[int]:
        cuts = [draw(st.booleans()) for _ in finest]
        result = [1]
        for size, cut in zip(finest, cuts, strict=True):
            if cut:
                result.append(size)
            else:
                result[-1] *= size
        return result

    return merged(), merged()


@given(two_shapes())
def test_blocks_have_equal_products(shapes: tuple[list[int], list[int]]) -> None:
    old, new = shapes
    for before, after in blocks(old, new):
        assert math.prod(old[dim] for dim in before) == math.prod(new[dim] for dim in after)


@given(two_shapes(), st.data())
def test_reshape_moves_labels_with_the_elements(shapes: tuple[list[int], list[int]], data: st.DataObject) -> None:
    old, new = shapes
    dim = data.draw(st.integers(0, len(old) - 1))
    ids = np.arange(1, old[dim] + 1)
    kept, lost = reshaped(vector(dim, ids), old, new)
    assert not lost
    every = np.broadcast_to(ids.reshape([-1 if d == dim else 1 for d in range(len(old))]), old).reshape(new)
    if old[dim] == 1:
        assert kept == ()
        return
    (factor,) = kept
    expanded = factor.ids.reshape([size if d in factor.dims else 1 for d, size in enumerate(new)])
    assert (np.broadcast_to(expanded, new) == every).all()


def test_two_labelled_dims_in_one_block_lose_the_smaller() -> None:
    layout = (*vector(0, np.arange(1, 9)), *vector(1, np.arange(9, 12)))
    kept, lost = reshaped(layout, (8, 3), (24,))
    assert [factor.ids.size for factor in kept] == [24]
    assert [factor.ids.tolist() for factor in lost] == [[9, 10, 11]]


def test_renaming_transposes_joint_labels() -> None:
    factor = Factor((0, 1), np.arange(6).reshape(2, 3), 1)
    (moved,) = renamed((factor,), {0: 1, 1: 0})
    assert moved.dims == (0, 1)
    assert moved.preferred == 0
    assert (moved.ids == factor.ids.T).all()


def test_union_find_joins_transitively_and_reports_what_met_a_fixed_index() -> None:
    labels = Labels()
    first = labels.fresh("a", 0, 3, is_parameter=True)
    second = labels.fresh("b", 0, 3, is_parameter=True)
    third = labels.fresh("c", 0, 3, is_parameter=True)
    assert labels.unite(first, second).size == 0
    assert labels.unite(second, third[::-1].copy()).size == 0
    assert labels.unite(third, np.zeros(3, np.int64)).tolist() == third.tolist()
    components = labels.components()
    assert (components[first] == components[third[::-1]]).all()
    assert len(set(components[first].tolist())) == 3
    pin = Pin("op", "", "", 1, "why")
    labels.pin(first[:1], pin)
    assert labels.reasons(components) == {int(components[first[0]]): pin}
    assert labels.source_of(int(second[2])).name == "b"
