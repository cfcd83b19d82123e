"""ExecuTorch computes what ONNX Runtime computes, keeps what it converted, and names XNNPACK's operators."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from exported_families import exported, random_keep
from onnx import helper
from onnx_tools import random_inputs, run, worst_error
from operator_cases import IMAGE, several

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.measurement import Target
from hwprune.core.statistics import median
from hwprune.runtimes import _executorch_program as programs
from hwprune.runtimes._base import AbstractRuntime
from hwprune.runtimes._clocks import WallClock
from hwprune.runtimes._onnx.graph import read_graph
from hwprune.runtimes.executorch import ExecutorchRuntime, _layers
from hwprune.testing.networks import FAMILIES
from hwprune.testing.runtimes import RuntimeConformance, conv_net

pytest.importorskip("executorch", reason="pip install executorch")

TARGET = Target(runtime="executorch")
TOLERANCE = 1e-4


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class TestExecutorch(RuntimeConformance):
    runtime: ClassVar[AbstractRuntime] = ExecutorchRuntime()
    target: ClassVar[Target] = TARGET


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_dense_and_cut(family: str) -> None:
    _, graph, template = exported(family, batch=1)
    for model in (template.dense, template.at(random_keep(graph, 0))):
        session = ExecutorchRuntime().open(model, TARGET)
        session.run()
        assert worst_error(session.infer(random_inputs(model)), run(model, random_inputs(model))) < TOLERANCE
        session.close()


class TestKept:
    """What was converted once is not converted again."""

    @staticmethod
    def converted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[bytes]:
        """The models that are converted from now on, by a converter that only counts."""
        seen: list[bytes] = []

        def convert(model: bytes, batch: int) -> bytes:
            seen.append(model)
            return b"program of " + model

        monkeypatch.setattr(programs, "_converted", convert)
        monkeypatch.setenv("HWPRUNE_CACHE", str(folder))
        return seen

    def test_by_content_and_batch(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        seen = self.converted(monkeypatch, tmp_path)
        for model, batch in ((b"a", 1), (b"a", 1), (b"a", 2), (b"b", 1), (b"a", 1)):
            assert programs.program(model, batch, keep_bytes=1000) == b"program of " + model
        assert seen == [b"a", b"a", b"b"]

    def test_a_damaged_file_is_made_anew(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        seen = self.converted(monkeypatch, tmp_path)
        programs.program(b"a", 1, keep_bytes=1000)
        (path,) = (tmp_path / "executorch").iterdir()
        path.write_bytes(path.read_bytes()[:-1])
        assert programs.program(b"a", 1, keep_bytes=1000) == b"program of a"
        assert len(seen) == 2

    def test_what_was_used_longest_ago_goes_first(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        seen = self.converted(monkeypatch, tmp_path)
        for day, model in enumerate((b"a", b"b", b"a", b"c", b"a", b"b")):
            before = {path: path.stat().st_mtime for path in tmp_path.rglob("*.pte")}
            programs.program(model, 1, keep_bytes=100)  # two files of 44 bytes fit, three do not
            for path in tmp_path.rglob("*.pte"):
                if path.stat().st_mtime != before.get(path):
                    os.utime(path, (day, day))
        assert seen == [b"a", b"b", b"c", b"b"]

    def test_nothing_where_nothing_is_to_be_kept(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        seen = self.converted(monkeypatch, tmp_path)
        for _ in range(2):
            programs.program(b"a", 1, keep_bytes=0)
        assert len(seen) == 2
        assert not list(tmp_path.iterdir())


class TestLayers:
    @pytest.mark.timed
    def test_they_add_up_to_the_whole(self) -> None:
        runtime, model = ExecutorchRuntime(), conv_net(128, layers=6, size=28)
        clock, session = runtime.clock(TARGET), runtime.open(model, TARGET)
        ratios = []
        with runtime.measuring(TARGET):
            session.run()
            for _ in range(5):
                layers = runtime.layer_times(model, TARGET, runs=10)
                whole = median(sorted(clock.time(session.run).time_ms for _ in range(10))[:5])
                ratios.append(sum(layer.latency_ms for layer in layers) / whole)
        assert 0.75 < median(ratios) < 1.33

    def test_operators_keep_xnnpacks_names_where_their_number_is_another(self) -> None:
        graph = read_graph(conv_net(16), batch=1, reader="ExecuTorch")
        event = ("Convolution (NHWC, F32) IGEMM #1", [0.25, 0.75, 0.5])
        (layer,) = _layers([event], graph)
        assert (layer.name, layer.kind) == (event[0], "Convolution (NHWC, F32) IGEMM")
        assert layer.latency_ms == pytest.approx((0.25 + 0.5) / 2 + 0.0005)


class TestErrors:
    def test_unknown_operators_are_named(self) -> None:
        node = helper.make_node("LpPool", ["input"], ["output"], "first", kernel_shape=[2, 2])
        with pytest.raises(UsageError, match=r"LpPool \(node 'first'\)"):
            ExecutorchRuntime().open(several([node], IMAGE, {}), TARGET)

    def test_a_missing_package_is_named_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "executorch.extension.pybindings", None)
        programs.bindings.cache_clear()
        with pytest.raises(DeviceError, match="ExecuTorch cannot be imported") as caught:
            ExecutorchRuntime().check(TARGET)
        assert caught.value.hint == "pip install executorch"
        programs.bindings.cache_clear()

    def test_what_the_passes_raise_becomes_one_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        def fail(*arguments: object) -> None:
            raise RuntimeError("no kernel\nand many lines more")

        monkeypatch.setattr(torch.export, "export", fail)
        with pytest.raises(UsageError, match=r"ExecuTorch cannot convert the model: no kernel$"):
            programs.program(conv_net(24), 1, keep_bytes=0)

    def test_too_many_threads_are_refused(self) -> None:
        with pytest.raises(UsageError, match="4096 threads on"):
            ExecutorchRuntime().check(Target(threads=4096))


def test_several_threads_are_timed_by_the_wall() -> None:
    assert isinstance(ExecutorchRuntime().clock(Target(threads=2)), WallClock)


def test_the_pool_has_the_targets_number_of_threads() -> None:
    model, bindings = conv_net(16), programs.bindings()
    for threads in (2, 1):
        session = ExecutorchRuntime().open(model, Target(runtime="executorch", threads=threads))
        assert bindings._threadpool_get_thread_count() == threads
        assert np.isfinite(session.infer(random_inputs(model))[0]).all()
        session.close()
