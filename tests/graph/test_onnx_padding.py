"""Cutting ONNX graphs in which channels are padded on, with zeros or with a constant: they follow what reads them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_tools import Node, cut_model, model_of, run

from hwprune.core.errors import GraphError


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_padded_channels_follow_what_they_are_added_to() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(2, 2, 1, 1)).astype("f"), "b": rng.normal(size=(6, 2, 1, 1)).astype("f"),
        "p": ints(0, 2, 0, 0, 0, 2, 0, 0), "c": rng.normal(size=(3, 6, 1, 1)).astype("f"),
    }  # fmt: skip
    nodes: list[Node] = [
        ("Conv", ["image", "a"], ["x"], {}), ("Conv", ["image", "b"], ["y"], {}), ("Pad", ["x", "p"], ["z"], {}),
        ("Add", ["z", "y"], ["s"], {}), ("Conv", ["s", "c"], ["out"], {}),
    ]  # fmt: skip
    keep = [1, 2, 5]  # one of two channels in front, one of two between, one of two behind
    cut = cut_model(
        model_of(nodes, tensors, inputs={"image": (1, 2, 3, 3)}, output="out"),
        {"a": {0: [0]}, "b": {0: keep}, "c": {1: keep}},
    )
    image = rng.normal(size=(1, 2, 3, 3)).astype("f")
    masked = {name: array.copy() for name, array in tensors.items()}
    masked["a"][1] = masked["c"][:, [0, 3, 4]] = 0
    expected = run(model_of(nodes, masked, inputs={"image": (1, 2, 3, 3)}, output="out"), {"image": image})[0]
    assert run(cut, {"image": image})[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("maker", ["Concat", "Pad"])
@pytest.mark.parametrize("reader", ["Conv", "MatMul"])
def test_constant_channels_follow_the_weight_that_reads_them(maker: str, reader: str) -> None:
    """Only the layer behind them says that channels which are constant go too."""
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(4, 2, 1, 1)).astype("f"), "b": rng.normal(size=(3, 6, 1, 1)).astype("f"),
        "m": rng.normal(size=(6, 3)).astype("f"), "z": rng.normal(size=(1, 2, 1, 1)).astype("f"),
        "p": ints(0, 0, 0, 0, 0, 2, 0, 0), "one": np.array(1, "f"), "s": ints(2, 3),
    }  # fmt: skip
    nodes: list[Node] = [("Conv", ["image", "a"], ["c"], {}), ("GlobalMaxPool", ["c"], ["x"], {})]
    if reader == "MatMul":
        nodes.append(("Squeeze", ["x", "s"], ["flat"], {}))
        tensors |= {"z": tensors["z"][..., 0, 0], "p": ints(0, 0, 0, 2)}
    last = nodes[-1][2][0]
    nodes.append(
        ("Pad", [last, "p", "one"], ["y"], {}) if maker == "Pad" else ("Concat", [last, "z"], ["y"], {"axis": 1})
    )
    nodes.append((reader, ["y", "b" if reader == "Conv" else "m"], ["out"], {}))
    image = rng.normal(size=(1, 2, 3, 3)).astype("f")
    dense = model_of(nodes, tensors, inputs={"image": (1, 2, 3, 3)}, output="out")
    keep = [1, 2, 5]
    kept = {"a": {0: keep[:2]}, "b": {1: keep}, "m": {0: keep}}
    masked = {**tensors, "b": tensors["b"].copy(), "m": tensors["m"].copy()}
    masked["b"][:, [0, 3, 4]] = masked["m"][[0, 3, 4]] = 0
    expected = run(model_of(nodes, masked, inputs={"image": (1, 2, 3, 3)}, output="out"), {"image": image})[0]
    assert run(cut_model(dense, kept), {"image": image})[0] == pytest.approx(expected, abs=1e-5)


def test_constant_channels_that_were_read_before_stay() -> None:
    """The first reader took them for channels that stay; nothing tells it otherwise."""
    tensors = {"a": np.ones((4, 2, 1, 1), "f"), "b": np.ones((3, 6, 1, 1), "f"), "z": np.ones((1, 2, 3, 3), "f")}
    nodes: list[Node] = [
        ("Conv", ["image", "a"], ["x"], {}), ("Concat", ["x", "z"], ["y"], {"axis": 1}),
        ("ReduceMax", ["y"], ["r"], {"keepdims": 0}), ("Conv", ["y", "b"], ["s"], {}), ("Add", ["s", "r"], ["out"], {}),
    ]  # fmt: skip
    model = model_of(nodes, tensors, inputs={"image": (1, 2, 3, 3)}, output="out")
    with pytest.raises(GraphError, match="its inputs would lose different indices"):
        cut_model(model, {"a": {0: [1, 2]}, "b": {1: [1, 2, 5]}})
