"""ncnn computes what ONNX Runtime computes, operator by operator and on all families; and what only it does."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from exported_families import exported, random_keep
from onnx import helper
from onnx_tools import random_inputs, run, worst_error
from operator_cases import CASES, IMAGE, normal, one, several

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Target
from hwprune.core.statistics import median
from hwprune.runtimes import ncnn as plugin
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes._clocks import WallClock
from hwprune.runtimes._ncnn.model import NcnnModel
from hwprune.runtimes._ncnn.rules import write
from hwprune.runtimes._onnx.graph import read_graph
from hwprune.runtimes.ncnn import NcnnRuntime
from hwprune.testing.networks import FAMILIES
from hwprune.testing.runtimes import RuntimeConformance, conv_net

pytest.importorskip("ncnn", reason="pip install ncnn")

TARGET = Target(runtime="ncnn")
TOLERANCE = 1e-4
REFUSED = {
    "slice stride off": "only every n-th row or column from the first",
    "nearest rounded": "mode nearest, half_pixel",
}
FOREIGN = ("transformer",)  # moves the batch between other dimensions


class TestNcnn(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = NcnnRuntime()
    target: ClassVar[Target] = TARGET


def outputs_of(model: bytes) -> list[np.ndarray]:
    session = NcnnRuntime().open(model, TARGET)
    session.run()
    found = session.infer(random_inputs(model))
    session.close()
    return found


def written(model: bytes) -> NcnnModel:
    return write(read_graph(model, batch=1, reader="ncnn"))


def kinds(model: bytes) -> list[str]:
    return [layer.kind for layer in written(model).layers]


@pytest.mark.parametrize("name", sorted(set(CASES) - set(REFUSED)))
def test_every_operator(name: str) -> None:
    assert worst_error(outputs_of(CASES[name]), run(CASES[name], random_inputs(CASES[name]))) < TOLERANCE


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_ncnn_has_not_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[name]) as caught:
        outputs_of(CASES[name])
    assert "'node'" in caught.value.message
    assert "onnxruntime" in caught.value.hint


@pytest.mark.parametrize(
    "family",
    ["together", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(FAMILIES) if name not in FOREIGN)],
)
def test_every_family_dense_and_cut(family: str) -> None:
    _, graph, template = exported(family, batch=1, without=FOREIGN)
    for model in (template.dense, *(template.at(random_keep(graph, seed)) for seed in range(3))):
        assert worst_error(outputs_of(model), run(model, random_inputs(model))) < TOLERANCE


class TestFile:
    def test_activations_are_a_part_of_the_layer_before_them(self) -> None:
        for case in ("conv relu", "conv leaky", "conv clip", "conv sigmoid", "conv hard swish"):
            assert kinds(CASES[case]) == ["Input", "Convolution"]
        assert kinds(CASES["gemm relu"]) == ["Input", "InnerProduct"]

    def test_an_activation_stays_alone_where_what_is_before_it_is_read_elsewhere_too(self) -> None:
        assert kinds(CASES["output between"]) == ["Input", "Convolution", "Split", "ReLU", "BinaryOp"]

    def test_patterns_are_one_layer(self) -> None:
        assert kinds(CASES["swish"]) == ["Input", "Split", "Swish"][::2]
        assert kinds(CASES["shuffle"]) == ["Input", "ShuffleChannel"]
        assert kinds(CASES["group norm"]) == ["Input", "GroupNorm"]
        assert kinds(CASES["gelu in pieces"]) == ["Input", "GELU"]

    def test_a_global_mean_that_is_flattened_needs_no_layer_for_it(self) -> None:
        assert kinds(CASES["global average flat"]) == ["Input", "Pooling"]
        assert kinds(CASES["squeeze and excite"]).count("Reshape") == 1

    def test_layers_and_blobs_are_counted(self) -> None:
        model = written(CASES["split"])
        magic, counts, *lines = model.text.splitlines()
        made = [blob for layer in model.layers for blob in layer.outputs]
        assert magic == "7767517"
        assert counts == f"{len(lines)} {len(set(made))}"
        assert len(made) == len(set(made))
        read = Counter(blob for layer in model.layers for blob in layer.inputs)
        assert set(read.values()) == {1}

    def test_names_with_blanks_and_long_names_stay_one_word(self) -> None:
        node = helper.make_node("Relu", ["input"], ["output"], "a name\twith blanks " + "x" * 400)
        line = written(several([node], IMAGE, {})).text.splitlines()[-1]
        assert len(line.split()) == 6
        assert max(map(len, line.split())) < 256

    def test_weights_are_fp32_behind_their_flag(self) -> None:
        weight, bias = normal(4, 6, 3, 3), normal(4)
        model = written(one("Conv", IMAGE, weight, bias))
        assert model.weights == bytes(4) + weight.tobytes() + bias.tobytes()


class TestErrors:
    def test_all_unknown_operators_are_named(self) -> None:
        nodes = [
            helper.make_node("LpPool", ["input"], ["a"], "first", kernel_shape=[2, 2]),
            helper.make_node("Hardmax", ["a"], ["output"], "second"),
        ]
        with pytest.raises(UsageError, match=r"Hardmax \(node 'second'\), LpPool \(node 'first'\)"):
            written(several(nodes, IMAGE, {}))

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (one("Transpose", IMAGE, perm=[1, 0, 2, 3]), "of shape \\(6, 1, 8, 9\\)"),
            (one("Reshape", IMAGE, np.array([6, 72])), "one image at a time"),
            (one("ReduceMean", IMAGE, np.array([0])), "reduces over the batch"),
            (one("Conv", (1, 6, 9), normal(4, 6, 3)), "only 2-D convolutions"),
            (one("Conv", IMAGE, normal(4, 6, 3, 3), auto_pad="SAME_UPPER"), "auto_pad=SAME_UPPER"),
            (one("Pow", IMAGE, np.float32(3)), "only squares and square roots"),
            (one("Gemm", (1, 1), normal(1, 5), transA=1), "transA"),
        ],
    )
    def test_what_it_cannot_hold_is_said(self, model: bytes, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            written(model)

    def test_a_missing_package_is_named_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ncnn", None)
        plugin._ncnn.cache_clear()
        with pytest.raises(DeviceError, match="not installed") as caught:
            NcnnRuntime().check(TARGET)
        assert caught.value.hint == "pip install ncnn"
        plugin._ncnn.cache_clear()

    def test_batches_and_too_many_threads_are_refused(self) -> None:
        with pytest.raises(UsageError, match="one image at a time, not a batch of 2"):
            NcnnRuntime().check(Target(batch=2))
        with pytest.raises(UsageError, match="4096 threads on"):
            NcnnRuntime().check(Target(threads=4096))


class TestSettings:
    def test_fp32_and_threads_reach_ncnn(self) -> None:
        for threads in (1, 2):
            options = NcnnRuntime().open(conv_net(16), Target(threads=threads))._net.opt
            names = [name for name in dir(options) if name.startswith(("use_fp16", "use_bf16", "use_int8"))]
            assert len(names) >= 6
            assert not any(getattr(options, name) for name in names)
            assert options.num_threads == threads

    def test_several_threads_are_timed_by_the_wall(self) -> None:
        assert isinstance(NcnnRuntime().clock(Target(threads=2)), WallClock)

    @pytest.mark.parametrize("name", [item.name for item in fields(NcnnRuntime)])
    def test_options_reach_ncnn_and_the_fingerprint_and_change_no_output(self, name: str) -> None:
        other = NcnnRuntime(**{name: False})
        found = other.fingerprint(TARGET).differences(NcnnRuntime().fingerprint(TARGET))
        assert found == (f"flag {name}: off != on",)
        model = conv_net(32)
        session = other.open(model, TARGET)
        assert worst_error(session.infer(random_inputs(model)), run(model, random_inputs(model))) < TOLERANCE
        key = {"packing": "use_packing_layout", "sgemm": "use_sgemm_convolution", "light_mode": "lightmode"}
        assert getattr(session._net.opt, key.get(name, "use_winograd63_convolution")) is False

    def test_nothing_is_left_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import tempfile

        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        NcnnRuntime().open(conv_net(16), TARGET).close()
        assert not list(tmp_path.iterdir())


class TestLayers:
    @pytest.mark.timed
    def test_they_add_up_to_the_whole(self) -> None:
        """Asked for one after the other in light mode, out of pools of their own, layers do what they do in a run."""
        runtime, model = NcnnRuntime(), conv_net(128, layers=6, size=28)
        clock, session = runtime.clock(TARGET), runtime.open(model, TARGET)
        ratios = []
        with runtime.measuring(TARGET):
            for _ in range(5):
                layers = runtime.layer_times(model, TARGET, runs=10)
                whole = median(sorted(clock.time(session.run).time_ms for _ in range(10))[:5])
                ratios.append(sum(layer.latency_ms for layer in layers) / whole)
        assert 0.8 < median(ratios) < 1.25

    def test_layers_without_a_node_say_what_they_are(self) -> None:
        layers = NcnnRuntime().layer_times(CASES["output between"], TARGET, runs=2)
        assert [layer.kind for layer in layers] == ["Conv", "Split", "Relu", "Add"]
        assert [layer.name for layer in layers] == ["conv", "Split", "relu", "add"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["resnet18", "mobilenetv2", "unet"])
def test_pnnx_makes_the_same_of_it(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official converter's network has the same layers that compute, and the same outputs."""
    pnnx = pytest.importorskip("pnnx", reason="pip install pnnx")
    import ncnn

    from hwprune.runtimes._torch.from_onnx import convert, load_onnx

    _, graph, template = exported(family, batch=1)
    monkeypatch.chdir(tmp_path)
    pnnx.export(convert(load_onnx(template.dense)), str(tmp_path / "net.pt"), tuple(graph.example), fp16=False)
    lines = (tmp_path / "net.ncnn.param").read_text().splitlines()[2:]
    computing = (
        "Convolution",
        "ConvolutionDepthWise",
        "Deconvolution",
        "InnerProduct",
        "Pooling",
        "BinaryOp",
        "Concat",
    )
    theirs = Counter(line.split()[0] for line in lines if line.split()[0] in computing)
    ours = Counter(kind for kind in kinds(template.dense) if kind in computing)
    assert ours == theirs
    net = ncnn.Net()
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, name, False)
    net.load_param(str(tmp_path / "net.ncnn.param"))
    net.load_model(str(tmp_path / "net.ncnn.bin"))
    extractor = net.create_extractor()
    (image,) = random_inputs(template.dense).values()
    extractor.input("in0", ncnn.Mat(image[0]).clone())
    expected = np.array(extractor.extract("out0")[1])
    (found,) = outputs_of(template.dense)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)
