"""Folding BatchNormalization: the same function, only where it is allowed, and it commutes with cutting."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_tools import Node, model_of, run

from hwprune.graph.onnx.cut import Cutter
from hwprune.graph.onnx.fold import fold_batch_norms
from hwprune.graph.onnx.labels import FIXED, plan_cuts
from hwprune.graph.onnx.network import Network, from_model, to_model, with_inferred_shapes

IMAGE = (1, 4, 5, 5)


def _norm(channels: int, prefix: str = "n", seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}.weight": rng.uniform(-1, 2, channels).astype("f"),
        f"{prefix}.bias": rng.normal(size=channels).astype("f"),
        f"{prefix}.running_mean": rng.normal(size=channels).astype("f"),
        f"{prefix}.running_var": rng.uniform(0.1, 2, channels).astype("f"),
    }


def _batch_norm(source: str, result: str, prefix: str = "n") -> Node:
    names = [f"{prefix}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    return ("BatchNormalization", [source, *names], [result], {"epsilon": 1e-3})


def _network(nodes: list[Node], tensors: dict[str, np.ndarray], shape: tuple[int, ...] = IMAGE) -> Network:
    model = model_of(nodes, tensors, inputs={"image": shape}, output="out")
    return with_inferred_shapes(from_model(model, tensors))


def _weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("f")


LAYERS: dict[str, tuple[Node, dict[str, np.ndarray], int, tuple[int, ...]]] = {
    "conv": (("Conv", ["image", "l.weight"], ["y"], {}), {"l.weight": _weight(6, 4, 3, 3)}, 6, IMAGE),
    "conv_bias": (
        ("Conv", ["image", "l.weight", "l.bias"], ["y"], {}),
        {"l.weight": _weight(6, 4, 3, 3), "l.bias": _weight(6)},
        6,
        IMAGE,
    ),
    "grouped": (("Conv", ["image", "l.weight"], ["y"], {"group": 2}), {"l.weight": _weight(6, 2, 1, 1)}, 6, IMAGE),
    "transposed": (("ConvTranspose", ["image", "l.weight"], ["y"], {}), {"l.weight": _weight(4, 3, 2, 2)}, 3, IMAGE),
    "grouped_transposed": (
        ("ConvTranspose", ["image", "l.weight"], ["y"], {"group": 2}),
        {"l.weight": _weight(4, 3, 2, 2)},
        6,
        IMAGE,
    ),
    "linear": (("Gemm", ["image", "l.weight"], ["y"], {"transB": 1}), {"l.weight": _weight(6, 4)}, 6, (3, 4)),
    "linear_plain": (
        ("Gemm", ["image", "l.weight", "l.bias"], ["y"], {}),
        {"l.weight": _weight(4, 6), "l.bias": _weight(6)},
        6,
        (3, 4),
    ),
}


@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_folding_keeps_the_function(layer: str) -> None:
    node, tensors, channels, shape = LAYERS[layer]
    network = _network([node, _batch_norm("y", "out")], tensors | _norm(channels), shape)
    folded, _ = fold_batch_norms(network, {})
    assert [item.op_type for item in folded.nodes] == [node[0]]
    assert set(folded.tensors) == {"l.weight", "l.bias"}
    image = np.random.default_rng(2).normal(size=shape).astype("f")
    expected = run(to_model(network), {"image": image})[0]
    assert run(to_model(folded), {"image": image})[0] == pytest.approx(expected, abs=1e-5)


def test_folding_and_cutting_commute() -> None:
    tensors = {"l.weight": _weight(6, 4, 3, 3), "m.weight": _weight(2, 6, 1, 1)} | _norm(6)
    nodes: list[Node] = [
        ("Conv", ["image", "l.weight"], ["y"], {}),
        _batch_norm("y", "z"),
        ("Relu", ["z"], ["r"], {}),
        ("Conv", ["r", "m.weight"], ["out"], {}),
    ]
    network = _network(nodes, tensors)
    channel = np.array([0, 1, FIXED, 2, 3, 4], np.int32)
    labels = {name: {0: channel} for name in ("l.weight", *_norm(6))} | {"m.weight": {1: channel}}
    alive = np.array([True, False, False, True, True, True])
    folded_first = Cutter(plan_cuts(*fold_batch_norms(network, labels))).network(alive)
    cut_first, _ = fold_batch_norms(Cutter(plan_cuts(network, labels)).network(alive), {})
    assert folded_first.tensors.keys() == cut_first.tensors.keys()
    for name, array in folded_first.tensors.items():
        assert np.array_equal(array, cut_first.tensors[name])
    assert folded_first.tensors["l.weight"].shape == (4, 4, 3, 3)


def test_a_layer_used_twice_gets_two_folded_weights() -> None:
    tensors = {"l.weight": _weight(4, 4, 1, 1)} | _norm(4, "a", 1) | _norm(4, "b", 2)
    nodes: list[Node] = [
        ("Conv", ["image", "l.weight"], ["y"], {}),
        _batch_norm("y", "z", "a"),
        ("Conv", ["z", "l.weight"], ["v"], {}),
        _batch_norm("v", "out", "b"),
    ]
    network = _network(nodes, tensors)
    folded, _ = fold_batch_norms(network, {})
    assert [item.op_type for item in folded.nodes] == ["Conv", "Conv"]
    assert len(folded.tensors) == 4
    image = np.random.default_rng(2).normal(size=IMAGE).astype("f")
    expected = run(to_model(network), {"image": image})[0]
    assert run(to_model(folded), {"image": image})[0] == pytest.approx(expected, abs=1e-5)


def test_a_norm_whose_input_is_read_elsewhere_stays() -> None:
    nodes: list[Node] = [
        ("Conv", ["image", "l.weight"], ["y"], {}),
        _batch_norm("y", "z"),
        ("Add", ["y", "z"], ["out"], {}),
    ]
    network = _network(nodes, {"l.weight": _weight(6, 4, 3, 3)} | _norm(6))
    folded, _ = fold_batch_norms(network, {})
    assert [item.op_type for item in folded.nodes] == ["Conv", "BatchNormalization", "Add"]


def test_a_norm_after_a_concatenation_stays() -> None:
    nodes: list[Node] = [("Concat", ["image", "image"], ["y"], {"axis": 1}), _batch_norm("y", "out")]
    folded, _ = fold_batch_norms(_network(nodes, _norm(8)), {})
    assert [item.op_type for item in folded.nodes] == ["Concat", "BatchNormalization"]
