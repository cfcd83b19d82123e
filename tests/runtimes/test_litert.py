"""LiteRT computes what ONNX Runtime computes, operator by operator and on all families; and what only it does."""

from __future__ import annotations

import sys
from typing import ClassVar

import numpy as np
import pytest
from exported_families import exported, random_keep
from onnx import helper
from onnx_tools import random_inputs, run, worst_error
from operator_cases import CASES, IMAGE, normal, one, several

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Target
from hwprune.runtimes import litert as plugin
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes._clocks import WallClock
from hwprune.runtimes._litert.model import schema
from hwprune.runtimes._litert.rules import write
from hwprune.runtimes._onnx.graph import read_graph
from hwprune.runtimes.litert import LitertRuntime
from hwprune.testing.networks import FAMILIES
from hwprune.testing.runtimes import RuntimeConformance, conv_net

pytest.importorskip("ai_edge_litert", reason="pip install ai-edge-litert")

TARGET = Target(runtime="litert")
TOLERANCE = 1e-4
REFUSED = {
    "mish": "Mish \\(node 'node'\\)",
    "softplus": "Softplus \\(node 'node'\\)",
    "scalar over": "Reciprocal \\(node 'n1'\\)",
    "average pool uncounted": "windows of different sizes",
    "pad edge": "in mode edge",
    "nearest rounded": "mode nearest, half_pixel",
}


class TestLitert(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = LitertRuntime()
    target: ClassVar[Target] = TARGET

    def test_layer_times_name_the_convolutions_in_order(self) -> None:
        """There are none, rather than wrong ones."""
        assert self.runtime.layer_times(conv_net(32), self.target, runs=5) == ()


def outputs_of(model: bytes, batch: int = 1) -> list[np.ndarray]:
    session = LitertRuntime().open(model, Target(runtime="litert", batch=batch))
    session.run()
    found = session.infer(random_inputs(model))
    session.close()
    return found


def kinds(model: bytes) -> list[str]:
    return list(write(read_graph(model, batch=1, reader="LiteRT")).kinds)


@pytest.mark.parametrize("name", sorted(set(CASES) - set(REFUSED)))
def test_every_operator(name: str) -> None:
    assert worst_error(outputs_of(CASES[name]), run(CASES[name], random_inputs(CASES[name]))) < TOLERANCE


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_litert_has_not_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[name]) as caught:
        outputs_of(CASES[name])
    assert "onnxruntime" in caught.value.hint


@pytest.mark.parametrize(
    ("family", "batch"),
    [("together", 1), *(pytest.param(name, 2, marks=pytest.mark.slow) for name in sorted(FAMILIES))],
)
def test_every_family_dense_and_cut(family: str, batch: int) -> None:
    _, graph, template = exported(family, batch=batch)
    for model in (template.dense, *(template.at(random_keep(graph, seed)) for seed in range(3))):
        assert worst_error(outputs_of(model, batch), run(model, random_inputs(model))) < TOLERANCE


class TestFile:
    def test_it_is_one(self) -> None:
        content = write(read_graph(CASES["conv"], batch=1, reader="LiteRT")).content
        assert content[4:8] == b"TFL3"
        model = schema().ModelT.InitFromPackedBuf(content, 0)
        assert model.version == 3
        assert len(model.subgraphs) == 1

    def test_activations_are_a_part_of_the_operator_before_them(self) -> None:
        assert kinds(CASES["conv relu"]) == ["PAD", "CONV_2D"] or kinds(CASES["conv relu"]) == ["CONV_2D"]
        assert kinds(CASES["gemm relu"]) == ["FULLY_CONNECTED"]
        assert kinds(CASES["conv clip odd"])[-2:] == ["MAXIMUM", "MINIMUM"]

    def test_padding_is_an_operator_only_where_litert_has_no_word_for_it(self) -> None:
        assert kinds(CASES["conv"]) == ["CONV_2D"]  # "same"
        assert kinds(CASES["conv no bias"]) == ["CONV_2D"]  # none
        assert kinds(CASES["conv depthwise"]) == ["PAD", "DEPTHWISE_CONV_2D"]  # torch's, with stride 2 on even sizes

    def test_images_stay_channels_last_from_input_to_output(self) -> None:
        for name in ("squeeze and excite", "concat rows", "pad channels", "slice image", "output between", "swish"):
            assert "TRANSPOSE" not in kinds(CASES[name])

    def test_a_pooled_vector_is_not_transposed(self) -> None:
        assert kinds(CASES["global average flat"]) == ["MEAN", "RESHAPE", "RESHAPE"]
        assert "TRANSPOSE" in kinds(CASES["flatten"])

    @pytest.mark.parametrize(("case", "parts"), [("conv relu", "1"), ("layer norm", "1"), ("concat rows", "1")])
    def test_a_network_that_xnnpack_knows_is_one_part(self, case: str, parts: str) -> None:
        session = LitertRuntime().open(CASES[case], TARGET)
        assert session.facts == {"parts in XNNPACK": parts}

    def test_kernels_of_litert_between_make_it_several(self) -> None:
        """XNNPACK does not know padding by another value than 0, which a padded maximum needs."""
        nodes = [
            helper.make_node("Conv", ["input", "w"], ["a"], "first"),
            helper.make_node("MaxPool", ["a"], ["b"], "most", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
            helper.make_node("Conv", ["b", "v"], ["output"], "last"),
        ]
        model = several(nodes, IMAGE, {"w": normal(4, 6, 1, 1), "v": normal(3, 4, 1, 1)})
        assert LitertRuntime().open(model, TARGET).facts == {"parts in XNNPACK": "2"}


class TestErrors:
    def test_all_unknown_operators_are_named(self) -> None:
        nodes = [
            helper.make_node("LpPool", ["input"], ["a"], "first", kernel_shape=[2, 2]),
            helper.make_node("Hardmax", ["a"], ["output"], "second"),
        ]
        with pytest.raises(UsageError, match=r"Hardmax \(node 'second'\), LpPool \(node 'first'\)"):
            kinds(several(nodes, IMAGE, {}))

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (one("Conv", (1, 6, 9), normal(4, 6, 3)), "only 2-D convolutions"),
            (one("Conv", IMAGE, normal(4, 6, 3, 3), auto_pad="SAME_UPPER"), "auto_pad=SAME_UPPER"),
            (one("Gemm", (1, 1), normal(1, 5), transA=1), "transA"),
            (one("Softmax", IMAGE, axis=2), "runs over dimension 2 of 4"),
            (one("MaxPool", IMAGE, kernel_shape=[2, 2], dilations=[2, 2]), "only plain 2-D pooling"),
        ],
    )
    def test_what_it_cannot_do_is_said(self, model: bytes, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            kinds(model)

    def test_a_missing_package_is_named_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
        plugin._litert.cache_clear()
        with pytest.raises(DeviceError, match="not installed") as caught:
            LitertRuntime().check(TARGET)
        assert caught.value.hint == "pip install ai-edge-litert"
        plugin._litert.cache_clear()

    def test_too_many_threads_are_refused(self) -> None:
        with pytest.raises(UsageError, match="4096 threads on"):
            LitertRuntime().check(Target(threads=4096))


def test_several_threads_are_timed_by_the_wall() -> None:
    assert isinstance(LitertRuntime().clock(Target(threads=2)), WallClock)


def test_several_images_at_once() -> None:
    model = conv_net(16, batch=3)
    assert worst_error(outputs_of(model, batch=3), run(model, random_inputs(model))) < TOLERANCE
