"""Cutting ONNX graphs operator by operator: a cut equals the dense graph with the removed channels set to zero."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_tools import Node, cut_model, model_of, run

from hwprune.core.errors import GraphError
from hwprune.graph.onnx.labels import FIXED, reshape_labels

CHANNELS = 8
INTS = np.int64
KEPT = [0, 3, 4, 7]

# two rows to append: ones in the kept channels, zeros in the removed ones
ROWS = np.isin(np.arange(CHANNELS), KEPT).astype("f").reshape(1, 8, 1, 1) * np.ones((1, 8, 2, 6), "f")


def ints(*values: int) -> np.ndarray:
    return np.array(values, INTS)


# as many channels again, constant, to follow those of x; and which of all of them then stay
AGAIN = {"c": np.full((1, 8, 4, 6), 0.5, "f"), "w": np.arange(5 * 16, dtype="f").reshape(5, 16, 1, 1)}
TWICE = {"w": {1: [*KEPT, *(CHANNELS + k for k in KEPT)]}}

# name -> nodes from "x" (1, 8, 4, 6), all of whose 8 channels are cut to KEPT, to "y"; constants; kept weights
CASES: dict[str, tuple[list[Node], dict[str, np.ndarray], dict[str, dict[int, list[int]]]]] = {
    "relu": ([("Relu", ["x"], ["y"], {})], {}, {}),
    "flatten": ([("Flatten", ["x"], ["y"], {"axis": 1})], {}, {}),
    "reshape_merge": ([("Reshape", ["x", "s"], ["y"], {})], {"s": ints(1, 8, 24)}, {}),
    "reshape_infer": ([("Reshape", ["x", "s"], ["y"], {})], {"s": ints(0, -1)}, {}),
    "squeeze": (
        [("GlobalAveragePool", ["x"], ["p"], {}), ("Squeeze", ["p", "a"], ["y"], {})], {"a": ints(2, 3)}, {},
    ),
    "unsqueeze": ([("Unsqueeze", ["x", "a"], ["y"], {})], {"a": ints(0, 3)}, {}),
    "transpose": ([("Transpose", ["x"], ["y"], {"perm": [2, 0, 3, 1]})], {}, {}),
    "transpose_default": ([("Transpose", ["x"], ["y"], {})], {}, {}),
    "concat_channels": ([("Concat", ["x", "c", "x"], ["y"], {"axis": 1})], {"c": np.ones((1, 3, 4, 6), "f")}, {}),
    "concat_rows": ([("Concat", ["x", "c"], ["y"], {"axis": 2})], {"c": ROWS}, {}),
    "split": (
        [("Split", ["x", "s"], ["a", "b", "c"], {"axis": 1}), ("Concat", ["c", "a", "b"], ["y"], {"axis": 1})],
        {"s": ints(1, 4, 3)}, {},
    ),
    "slice": ([("Slice", ["x", "a", "b", "d"], ["y"], {})], {"a": ints(2, 1), "b": ints(-1, 9), "d": ints(1, 2)}, {}),
    "slice_step": (
        [("Slice", ["x", "a", "b", "d", "t"], ["y"], {})],
        {"a": ints(1), "b": ints(8), "d": ints(1), "t": ints(2)}, {},
    ),
    "slice_reverse": (
        [("Slice", ["x", "a", "b", "d", "t"], ["y"], {})],
        {"a": ints(-1), "b": ints(-100), "d": ints(1), "t": ints(-1)}, {},
    ),
    "gather": ([("Gather", ["x", "i"], ["y"], {"axis": 1})], {"i": ints(7, 0, 1, -5)}, {}),
    "gather_row": ([("Gather", ["x", "i"], ["y"], {"axis": 2})], {"i": np.array(1, INTS)}, {}),
    "pad_rows": ([("Pad", ["x", "p"], ["y"], {})], {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}, {}),
    "pad_channels": ([("Pad", ["x", "p"], ["y"], {})], {"p": ints(0, 2, 0, 0, 0, 3, 0, 0)}, {}),
    "expand": ([("Expand", ["x", "s"], ["y"], {})], {"s": ints(2, 3, 8, 4, 6)}, {}),
    "tile": ([("Tile", ["x", "r"], ["y"], {})], {"r": ints(1, 2, 1, 3)}, {}),
    "resize_sizes": (
        [("Resize", ["x", "", "", "s"], ["y"], {"mode": "nearest"})], {"s": ints(1, 8, 8, 3)}, {},
    ),
    "resize_scales": (
        [("Resize", ["x", "", "s"], ["y"], {"mode": "linear"})], {"s": np.array([1, 1, 2, 0.5], "f")}, {},
    ),
    "space_to_depth": ([("SpaceToDepth", ["x"], ["y"], {"blocksize": 2})], {}, {}),
    "max_pool": ([("MaxPool", ["x"], ["y"], {"kernel_shape": [2, 2], "strides": [2, 2]})], {}, {}),
    "reduce_mean": ([("ReduceMean", ["x"], ["y"], {"axes": [2, 3], "keepdims": 0})], {}, {}),
    "reduce_sum": ([("ReduceSum", ["x", "a"], ["y"], {})], {"a": ints(-1)}, {}),
    "multiply_constant": ([("Mul", ["x", "c"], ["y"], {})], {"c": np.arange(8, dtype="f").reshape(8, 1, 1)}, {}),
    "broadcast_product": (
        [("GlobalMaxPool", ["x"], ["p"], {}), ("Sigmoid", ["p"], ["q"], {}), ("Mul", ["x", "q"], ["y"], {})], {}, {},
    ),
    "where": (
        [("Greater", ["x", "z"], ["g"], {}), ("Where", ["g", "x", "z"], ["y"], {})], {"z": np.array(0, "f")}, {},
    ),
    "depthwise": (
        [("Conv", ["x", "w"], ["y"], {"group": 8})],
        {"w": np.arange(16 * 9, dtype="f").reshape(16, 1, 3, 3)},
        {"w": {0: [2 * k + j for k in KEPT for j in (0, 1)]}},
    ),
    "conv": (
        [("Conv", ["x", "w"], ["y"], {})], {"w": np.arange(5 * 8, dtype="f").reshape(5, 8, 1, 1)}, {"w": {1: KEPT}},
    ),
    "conv_transpose": (
        [("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]})],
        {"w": np.arange(8 * 20, dtype="f").reshape(8, 5, 2, 2)}, {"w": {0: KEPT}},
    ),
    "depthwise_transpose": (
        [("ConvTranspose", ["x", "w"], ["y"], {"group": 8})],
        {"w": np.arange(8 * 2 * 4, dtype="f").reshape(8, 2, 2, 2)}, {"w": {0: KEPT}},
    ),
    "matmul": (
        [("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}), ("MatMul", ["t", "w"], ["y"], {})],
        {"w": np.arange(8 * 5, dtype="f").reshape(8, 5)}, {"w": {0: KEPT}},
    ),
    "matrix_times_vector": (
        [("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}), ("MatMul", ["t", "w"], ["y"], {})],
        {"w": np.arange(8, dtype="f")}, {"w": {0: KEPT}},
    ),
    "vector_times_matrix": (
        [("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}), ("MatMul", ["w", "t"], ["y"], {})],
        {"w": np.arange(6, dtype="f")}, {},
    ),
    "attention": (
        [
            ("Reshape", ["x", "s"], ["q"], {}), ("Transpose", ["q"], ["k"], {"perm": [0, 2, 1]}),
            ("MatMul", ["k", "q"], ["a"], {}), ("MatMul", ["q", "a"], ["y"], {}),
        ],
        {"s": ints(1, 8, 24)}, {},
    ),
    "gemm": (
        [("Flatten", ["x"], ["f"], {}), ("Gemm", ["f", "w", "b"], ["y"], {"transB": 1})],
        {"w": np.arange(3 * 192, dtype="f").reshape(3, 192) / 99, "b": np.ones(3, "f")},
        {"w": {1: [24 * k + j for k in KEPT for j in range(24)]}},
    ),
    "einsum_weight": (
        [("Einsum", ["x", "w"], ["y"], {"equation": "nchw,oc->nohw"})],
        {"w": np.arange(5 * 8, dtype="f").reshape(5, 8)}, {"w": {1: KEPT}},
    ),
    "einsum_implicit": (
        [("Einsum", ["x", "w"], ["y"], {"equation": "nchw , oc"})],
        {"w": np.arange(5 * 8, dtype="f").reshape(5, 8)}, {"w": {1: KEPT}},
    ),
    "einsum_ellipsis": (
        [
            ("ReduceMax", ["x"], ["p"], {"axes": [2, 3], "keepdims": 0}),
            ("Einsum", ["x", "p", "x"], ["y"], {"equation": "...hw,...,...hv->...wv"}),
        ],
        {}, {},
    ),
    "cumulative_sum": ([("CumSum", ["x", "a"], ["y"], {})], {"a": np.array(3, INTS)}, {}),
    "top": ([("TopK", ["x", "k"], ["y", "i"], {"axis": 2})], {"k": ints(3)}, {}),
    "grid_sample": (
        [("GridSample", ["x", "g"], ["y"], {})], {"g": np.linspace(-1, 1, 12, dtype="f").reshape(1, 3, 2, 2)}, {},
    ),
    "gather_nd": (
        [("Transpose", ["x"], ["t"], {"perm": [0, 2, 1, 3]}), ("GatherND", ["t", "i"], ["y"], {"batch_dims": 1})],
        {"i": ints(3, 0, 2).reshape(1, 3, 1)}, {},
    ),
    "gather_elements": (
        [("GatherElements", ["x", "i"], ["y"], {"axis": 2})],
        {"i": np.arange(96, dtype=INTS).reshape(1, 8, 2, 6) % 4}, {},
    ),
    "scatter_nd": (
        [("Transpose", ["x"], ["t"], {"perm": [2, 1, 3, 0]}), ("ScatterND", ["t", "i", "u"], ["y"], {})],
        {"i": ints(3, 1).reshape(2, 1), "u": ROWS.transpose(2, 1, 3, 0)}, {},
    ),
    "scatter_nd_channels": (
        [("Transpose", ["x"], ["t"], {"perm": [1, 2, 3, 0]}), ("ScatterND", ["t", "i", "u"], ["y"], {})],
        {"i": ints(4, 1, -8, 3).reshape(4, 1), "u": np.float32([1, 0, 2, 3]).repeat(24).reshape(4, 4, 6, 1)},
        {},
    ),
    "scatter_nd_onto_a_constant": (
        [("Transpose", ["x"], ["t"], {"perm": [2, 1, 3, 0]}), ("ScatterND", ["z", "i", "t"], ["y"], {})],
        {"i": ints(3, 1, 4, 0).reshape(4, 1), "z": np.zeros((5, 8, 6, 1), "f")}, {},
    ),
    "scatter_elements": (
        [("ScatterElements", ["x", "i", "u"], ["y"], {"axis": -2})],
        {"i": np.arange(96, dtype=INTS).reshape(1, 8, 2, 6) // 6 % 2 + 1, "u": ROWS}, {},
    ),
    "triangle": ([("Trilu", ["x"], ["y"], {"upper": 0})], {}, {}),
    "constant_channels_follow": (
        [
            ("Concat", ["x", "c"], ["a"], {"axis": 1}), ("Concat", ["x", "x"], ["b"], {"axis": 1}),
            ("Add", ["a", "b"], ["s"], {}), ("Conv", ["s", "w"], ["y"], {}),
        ],
        {**AGAIN, "c": np.zeros((1, 8, 4, 6), "f")}, TWICE,
    ),
}  # fmt: skip


def _cases() -> dict[str, tuple[list[Node], dict[str, np.ndarray], dict[str, dict[int, list[int]]]]]:
    blocks = {}
    for mode in ("CRD", "DCR"):
        nodes: list[Node] = [
            ("Tile", ["x", "r"], ["t"], {}), ("Reshape", ["t", "s"], ["u"], {}),
            ("Transpose", ["u"], ["v"], {"perm": [0, 2, 1, 3, 4] if mode == "CRD" else [0, 1, 2, 3, 4]}),
            ("Reshape", ["v", "e"], ["w"], {}), ("DepthToSpace", ["w"], ["y"], {"blocksize": 2, "mode": mode}),
        ]  # fmt: skip
        constants = {"r": ints(1, 4, 1, 1), "s": ints(1, 4, 8, 4, 6), "e": ints(1, 32, 4, 6)}
        blocks[f"depth_to_space_{mode}"] = (nodes, constants, {})
    return CASES | blocks


@pytest.mark.parametrize("case", sorted(_cases()))
def test_a_cut_is_the_dense_graph_with_removed_channels_at_zero(case: str) -> None:
    nodes, constants, kept = _cases()[case]
    rng = np.random.default_rng(0)
    stem = rng.normal(size=(CHANNELS, 2, 1, 1)).astype("f")
    body = model_of(
        [("Conv", ["image", "stem"], ["x"], {}), *nodes], {"stem": stem, **constants},
        inputs={"image": (1, 2, 4, 6)}, output="y",
    )  # fmt: skip
    # Weighing every element by its position before summing shows any element that went to a wrong place.
    shape = [dim.dim_value for dim in body.graph.output[0].type.tensor_type.shape.dim]
    weights = rng.normal(size=shape).astype("f")
    summed: list[Node] = [("Mul", ["y", "weigh"], ["m"], {}), ("ReduceSum", ["m"], ["out"], {"keepdims": 0})]

    def whole(first: np.ndarray) -> onnx.ModelProto:
        return model_of(
            [("Conv", ["image", "stem"], ["x"], {}), *nodes, *summed],
            {"stem": first, **constants, "weigh": weights}, inputs={"image": (1, 2, 4, 6)}, output="out",
        )  # fmt: skip

    masked = stem.copy()
    masked[[index for index in range(CHANNELS) if index not in KEPT]] = 0
    image = rng.normal(size=(1, 2, 4, 6)).astype("f")
    expected = run(whole(masked), {"image": image})[0]
    cut = cut_model(whole(stem), {"stem": {0: KEPT}, **kept})
    onnx.checker.check_model(cut, full_check=True)
    assert run(cut, {"image": image})[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert sum(len(item.raw_data) for item in cut.graph.initializer) < sum(
        len(item.raw_data) for item in whole(stem).graph.initializer
    )


def test_an_operator_without_a_rule_is_named() -> None:
    model = model_of(
        [("Conv", ["image", "w"], ["x"], {}), ("LRN", ["x"], ["y"], {"size": 3}), ("Conv", ["y", "v"], ["out"], {})],
        {"w": np.ones((4, 2, 1, 1), "f"), "v": np.ones((3, 4, 1, 1), "f")},
        inputs={"image": (1, 2, 3, 3)},
        output="out",
    )
    with pytest.raises(GraphError, match=r"ONNX node 'n1/LRN' \(LRN\) cannot be cut: there is no rule") as caught:
        cut_model(model, {"w": {0: [1, 2]}, "v": {1: [1, 2]}})
    assert "protect" in caught.value.hint


def _two_convolutions(tail: Node) -> onnx.ModelProto:
    weights = {name: np.ones((4, 2, 1, 1), "f") for name in "ab"}
    nodes: list[Node] = [("Conv", ["image", "a"], ["x"], {}), ("Conv", ["image", "b"], ["y"], {}), tail]
    return model_of(nodes, weights, inputs={"image": (1, 2, 3, 3)}, output="out")


def test_inputs_that_would_lose_different_channels_are_an_error() -> None:
    model = _two_convolutions(("Add", ["x", "y"], ["out"], {}))
    with pytest.raises(GraphError, match=r"'n2/Add' \(Add\) cannot be cut: its inputs would lose different indices"):
        cut_model(model, {"a": {0: [1, 2]}, "b": {0: [1, 3]}})


def test_a_smaller_output_is_an_error() -> None:
    model = _two_convolutions(("Add", ["x", "y"], ["out"], {}))
    with pytest.raises(GraphError, match="the ONNX output 'out' would lose indices"):
        cut_model(model, {"a": {0: [1, 2]}, "b": {0: [1, 2]}})


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        (("GatherND", ["x", "i"], ["out"], {}), {"i": ints(0, 1).reshape(1, 2)}),
        (("ScatterND", ["x", "i", "u"], ["out"], {}), {"i": ints(0, 1).reshape(1, 2), "u": np.ones((1, 3, 3), "f")}),
        (("GatherElements", ["x", "i"], ["out"], {"axis": 1}), {"i": np.ones((1, 4, 3, 3), INTS)}),
        (("TopK", ["x", "k"], ["out", "i"], {"axis": 1}), {"k": ints(2)}),
    ],
)
def test_choosing_among_channels_is_refused(node: Node, constants: dict[str, np.ndarray]) -> None:
    nodes: list[Node] = [("Conv", ["image", "a"], ["x"], {}), node]
    tensors = {"a": np.ones((4, 2, 1, 1), "f"), **constants}
    model = model_of(nodes, tensors, inputs={"image": (1, 2, 3, 3)}, output="out")
    with pytest.raises(GraphError, match="it chooses along a dimension that would lose indices"):
        cut_model(model, {"a": {0: [1, 2]}})


def test_columns_to_image() -> None:
    """An operator of opset 18: two positions of each channel make one column."""
    nodes: list[Node] = [
        ("Conv", ["image", "a"], ["x"], {}), ("Reshape", ["x", "s"], ["f"], {}),
        ("Col2Im", ["f", "i", "k"], ["y"], {}), ("Conv", ["y", "b"], ["out"], {}),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(8, 2, 1, 1)).astype("f"), "b": rng.normal(size=(3, 4, 1, 1)).astype("f"),
        "s": ints(1, 8, 9), "i": ints(3, 4), "k": ints(1, 2),
    }  # fmt: skip
    image = rng.normal(size=(1, 2, 3, 3)).astype("f")
    dense = model_of(nodes, tensors, inputs={"image": (1, 2, 3, 3)}, output="out", opset=18)
    masked = {**tensors, "b": tensors["b"].copy()}
    masked["b"][:, [0, 3]] = 0
    expected = run(model_of(nodes, masked, inputs={"image": (1, 2, 3, 3)}, output="out", opset=18), {"image": image})[0]
    found = run(cut_model(dense, {"a": {0: [2, 3, 4, 5]}, "b": {1: [1, 2]}}), {"image": image})[0]
    assert found == pytest.approx(expected, abs=1e-5)
    with pytest.raises(GraphError, match="it would lose parts of a block"):
        cut_model(dense, {"a": {0: [0, 2, 4, 6]}})


def test_elements_of_part_of_the_channels_are_refused() -> None:
    nodes: list[Node] = [("Conv", ["image", "a"], ["x"], {}), ("GatherElements", ["x", "i"], ["out"], {"axis": 2})]
    tensors = {"a": np.ones((4, 2, 1, 1), "f"), "i": np.zeros((1, 2, 1, 3), INTS)}
    model = model_of(nodes, tensors, inputs={"image": (1, 2, 3, 3)}, output="out")
    with pytest.raises(GraphError, match="it reaches only part of a dimension that would lose indices"):
        cut_model(model, {"a": {0: [1, 2]}})


@st.composite
def _reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Two factorisations of one number of elements, and a dimension of the first."""
    primes = draw(st.lists(st.sampled_from([2, 3, 5]), min_size=1, max_size=4))
    shapes = []
    for _ in range(2):
        cuts = sorted(draw(st.lists(st.integers(0, len(primes)), max_size=3)))
        bounds = [0, *cuts, len(primes)]
        shapes.append(tuple(int(np.prod(primes[a:b], dtype=int)) for a, b in itertools.pairwise(bounds)))
    return shapes[0], shapes[1], draw(st.integers(0, len(shapes[0]) - 1))


@settings(max_examples=200, deadline=None)
@given(_reshapes(), st.randoms(use_true_random=False))
def test_reshaped_labels_select_what_a_reshaped_mask_selects(
    shapes: tuple[tuple[int, ...], tuple[int, ...], int], random: object
) -> None:
    shape, target, dim = shapes
    rng = np.random.default_rng(random.randrange(2**32))  # type: ignore[attr-defined]
    labels = rng.integers(FIXED, 2, size=shape[dim]).astype(np.int32)
    dims = tuple(labels if index == dim else None for index in range(len(shape)))
    result = reshape_labels(shape, dims, target)
    elements = np.broadcast_to(labels.reshape([-1 if index == dim else 1 for index in range(len(shape))]), shape)
    moved = elements.reshape(target)
    if result is None:
        # Refused only if the labels of the target vary along more than one dimension.
        varying = [d for d in range(len(target)) if (moved != moved.take([0], axis=d)).any()]
        assert len(varying) > 1
        return
    for index, own in enumerate(result):
        if own is not None:
            along = own.reshape([-1 if other == index else 1 for other in range(len(target))])
            assert np.array_equal(np.broadcast_to(along, target), moved)
    if all(own is None for own in result):
        assert (moved == FIXED).all() or moved.size == 1
