"""Everything that can go wrong on the way to a latency has its own error or warning, and none becomes a row."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import Gpu
from fake_jetson import FakeJetson

from hwprune.core.errors import DeviceError, HwpruneError, NetworkUnfit
from hwprune.core.events import Caution, Event, OnEvent, ignore
from hwprune.core.measurement import Measurement, Protocol, Target, explain
from hwprune.core.widths import Widths
from hwprune.devices import Board
from hwprune.devices.reference import reference_model
from hwprune.graph.onnx.precision import to_precision
from hwprune.latency.profile import profile
from hwprune.latency.table import LatencyTable
from hwprune.runtimes._tensorrt.builder import PlanBuilder
from hwprune.runtimes._tensorrt.errors import (
    BuildFailed,
    CudaError,
    DeviceLost,
    EngineRefused,
    MixedPrecision,
    ParseFailed,
    RunFailed,
)
from hwprune.runtimes._tensorrt.layers import profile as profile_layers
from hwprune.testing.runtimes import conv_net
from hwprune.testing.staircase import StaircaseGraph, staircase_space

TARGET = Target(device="cuda", runtime="tensorrt")
HALF = Target(device="cuda", runtime="tensorrt", precision="fp16")
QUICK = Protocol("test", rounds_min=3, rounds_max=3, laps=8, warmup_s=0.0, patience_s=0.01, retries=0)
SPACE = staircase_space()


class Template:
    """ONNX files of the right kind; which widths they have does not matter here."""

    def at_widths(self, widths: Mapping[str, int] | Widths) -> bytes:
        return conv_net(16)


def board_of(gpu: Gpu, target: Target = TARGET, **options: str | bool) -> Board:
    return Board(target, gpu.runtime(**options), prepare=lambda model, to: to_precision(model, to.precision))


def profiled(
    board: Board, folder: Path, on_event: OnEvent = ignore, template: Template | None = None
) -> tuple[LatencyTable, HwpruneError | None]:
    """The table after profiling a few networks, and the error that ended it."""
    table = LatencyTable.obtain(folder, model_name="net", graph=StaircaseGraph(), space=SPACE, board=board, tile=16)
    try:
        profile(template or Template(), StaircaseGraph(), SPACE, board, table=table, samples=6, on_event=on_event)
    except HwpruneError as error:
        return LatencyTable.open(table.folder), error
    return LatencyTable.open(table.folder), None


def measured(board: Board) -> Measurement:
    return board.measure({"net": conv_net(16)}, protocol=QUICK)["net"]


def test_with_nothing_wrong_there_are_rows_and_no_warnings(gpu: Gpu, tmp_path: Path) -> None:
    found_facts = (("clocks_locked", "unknown"), ("graph", "captured"), ("kernels", "4"))
    board = board_of(gpu)
    table, error = profiled(board, tmp_path)
    assert error is None
    assert len(table.rows) >= 6
    assert len(table.layer_rows) == 6
    assert {row.facts for row in table.rows} == {found_facts}
    assert all(row.wall_ms > row.latency_ms > 0 and row.notes == () for row in table.rows)
    found = measured(board)
    assert found.warnings == ()
    assert found.fingerprint == board.fingerprint
    assert found.facts == found_facts


FAULTS = {
    "the parser refuses": ({"parser_errors": ("Unsupported operator Foo",)}, ParseFailed, "node conv1: Unsupported"),
    "no engine is found": ({"build_error": "Could not find any implementation"}, BuildFailed, "any implementation"),
    "no engine and no word": ({"build_error": ""}, BuildFailed, "it does not say why"),
    "the plan is not loaded": ({"plan_refused": True}, EngineRefused, "does not load the plan"),
    "no context is made": ({"context_refused": True}, EngineRefused, "no execution context"),
    "the run is refused": ({"enqueue_refused": True}, RunFailed, "refused to enqueue"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_own_error_and_makes_no_row(fault: str, gpu: Gpu, tmp_path: Path) -> None:
    board = board_of(gpu)
    before = gpu.live()
    what, kind, message = FAULTS[fault]
    for name, value in what.items():
        setattr(gpu.script, name, value)
    table, error = profiled(board, tmp_path)
    assert type(error) is kind
    assert message in str(error)
    assert error.hint
    assert table.rows == table.layer_rows == ()
    assert gpu.live() == before, "a failed session left something on the GPU"


class OneOdd(Template):
    """The fourth network it is asked for is wider than the others."""

    def __init__(self) -> None:
        self._known: list[tuple[int, ...]] = []

    def at_widths(self, widths: Mapping[str, int] | Widths) -> bytes:
        values = tuple(widths.values())
        if values not in self._known:
            self._known.append(values)
        return conv_net(48 if self._known.index(values) == 3 else 16)


def test_one_network_without_an_engine_is_left_out_of_the_table(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = board_of(gpu)
    build = PlanBuilder.plan

    def plan(builder: PlanBuilder, model: bytes, *rest: Any) -> bytes:
        if model == conv_net(48):
            raise BuildFailed("no kernel for 48 channels")
        return build(builder, model, *rest)

    monkeypatch.setattr(PlanBuilder, "plan", plan)
    events: list[Event] = []
    table, error = profiled(board, tmp_path, events.append, OneOdd())
    assert error is None
    assert len({row.widths for row in table.rows}) == 5
    told = [event.text for event in events if isinstance(event, Caution)]
    assert set(told) == {"a network is left out of the table: no kernel for 48 channels"}


def test_profiling_tells_what_engines_warn_of_once(gpu: Gpu, tmp_path: Path) -> None:
    gpu.install("8.6.1")
    board = board_of(gpu, HALF)
    gpu.script.fp32_layers = ("conv1",)
    board.runtime._platform().builder(board.runtime._build_options())._plans.clear()
    events: list[Event] = []
    table, error = profiled(board, tmp_path, events.append)
    assert error is None
    assert len(table.rows) >= 6
    (told,) = [event.text for event in events if isinstance(event, Caution)]
    assert told.startswith("TensorRT kept layers in fp32 (conv1")


def test_parser_errors_name_the_node_in_both_generations(gpu: Gpu) -> None:
    gpu.script.parser_errors = ("bad", "worse", "worst", "and more")
    for version, node in (("8.6.1", "node 7"), ("10.3.0", "node conv1")):
        gpu.install(version)
        with pytest.raises(ParseFailed, match=rf"{node}: bad; {node}: worse; {node}: worst \(and 1 more\)"):
            gpu.runtime().open(conv_net(16), TARGET)


@pytest.mark.parametrize("code", [900, 901, 906])
def test_a_refused_capture_is_a_warning_and_another_fingerprint(code: int, gpu: Gpu, tmp_path: Path) -> None:
    board = board_of(gpu)
    gpu.set(capture_error=code)
    found = measured(board)
    assert found.warnings[-1] == "no_cuda_graph"
    assert "CUDA graph" in explain("no_cuda_graph")
    assert board.fingerprint.differences(found.fingerprint) == ("flag graph: captured != enqueued",)
    table, error = profiled(board, tmp_path)
    assert type(error) is NetworkUnfit
    assert "flag graph: captured != enqueued" in error.message
    assert "graph = false" in error.hint
    assert table.rows == ()


def test_where_capture_never_works_there_is_a_table_all_the_same(gpu: Gpu, tmp_path: Path) -> None:
    gpu.set(capture_error=900)
    board = board_of(gpu)
    assert dict(board.fingerprint.flags)["graph"] == "enqueued"
    events: list[Event] = []
    table, error = profiled(board, tmp_path, events.append)
    assert error is None
    assert len({row.widths for row in table.rows}) == 6
    assert [event.text for event in events if isinstance(event, Caution)] == [explain("no_cuda_graph")]
    found = measured(board)
    assert found.fingerprint == board.fingerprint == table.fingerprint
    assert found.warnings[-1] == "no_cuda_graph"


def test_without_graphs_from_the_beginning_the_rows_agree(gpu: Gpu, tmp_path: Path) -> None:
    gpu.set(capture_error=900)
    board = board_of(gpu, graph=False)
    table, error = profiled(board, tmp_path)
    assert error is None
    assert len(table.rows) >= 6
    assert "no_cuda_graph" not in measured(board).warnings


def test_one_network_that_cannot_be_captured_is_benched_and_left_out_of_the_table(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = board_of(gpu)
    build = PlanBuilder.plan

    def plan(builder: PlanBuilder, model: bytes, *rest: Any) -> bytes:
        gpu.set(capture_error=900 if model == conv_net(48) else 0)
        return build(builder, model, *rest)

    monkeypatch.setattr(PlanBuilder, "plan", plan)
    benched = board.measure({"good": conv_net(16), "odd": conv_net(48)}, protocol=QUICK)
    assert {name: found.warnings for name, found in benched.items()} == {"good": (), "odd": ("no_cuda_graph",)}
    assert {name: dict(found.facts)["graph"] for name, found in benched.items()} == {
        "good": "captured",
        "odd": "enqueued",
    }
    events: list[Event] = []
    table, error = profiled(board, tmp_path, events.append, OneOdd())
    assert error is None
    assert len({row.widths for row in table.rows}) == 5
    told = {event.text for event in events if isinstance(event, Caution)}
    assert told == {
        explain("no_cuda_graph"),
        "a network is left out of the table: it ran in another way than the table's networks "
        "(flag graph: captured != enqueued)",
    }


def test_a_sticky_error_ends_the_use_of_the_gpu(gpu: Gpu, tmp_path: Path) -> None:
    board = board_of(gpu)
    gpu.set(sticky_after=gpu.library.fake_kernels() + 100)
    table, error = profiled(board, tmp_path)
    assert type(error) is DeviceLost
    assert error.code == 700
    assert "cudaErrorIllegalAddress (700)" in str(error)
    assert "new process" in error.hint
    assert table.rows == ()
    kernels = gpu.library.fake_kernels()
    with pytest.raises(DeviceLost, match="lost to this process"):
        board.runtime.open(conv_net(32), TARGET)
    with pytest.raises(DeviceLost):
        measured(board)
    assert gpu.library.fake_kernels() == kernels, "the lost GPU was used again"
    board.close()


@pytest.mark.parametrize("after", range(0, 60, 7))
def test_a_sticky_error_at_any_point_of_opening_is_that_error(after: int, gpu: Gpu) -> None:
    runtime = gpu.runtime()
    gpu.set(sticky_after=after)
    with pytest.raises(DeviceLost):
        runtime.open(conv_net(16), TARGET)


@pytest.mark.parametrize("own_runtimes", [False, True])
@pytest.mark.parametrize("step", ["build", "run", "profile"])
def test_the_network_that_lost_the_gpu_is_the_one_that_is_told(step: str, own_runtimes: bool, gpu: Gpu) -> None:
    """Where TensorRT has a CUDA runtime of its own, our runtime's last error is none."""
    runtime = gpu.runtime()
    session = runtime.open(conv_net(16), TARGET)
    gpu.set(sticky_after=gpu.library.fake_kernels(), own_runtimes=own_runtimes)
    if step == "run":
        with pytest.raises(DeviceLost, match=r"an earlier CUDA call failed with cudaErrorIllegalAddress \(700\)"):
            session.enqueue()
    elif step == "profile":
        place = runtime._platform()
        gpu.set(sticky_after=gpu.library.fake_kernels() + 5)
        with pytest.raises(DeviceLost):
            profile_layers(place.trt, place.cuda, session, 4)
    else:
        gpu.script.build_error = "an illegal memory access was encountered"
        assert gpu.library.fake_kernel(ctypes.c_double(1e3), 0) == 700, "a kernel that the builder tried"
        with pytest.raises(DeviceLost):
            runtime.open(conv_net(32), TARGET)


def test_memory_that_runs_out_is_not_sticky(gpu: Gpu) -> None:
    runtime = gpu.runtime()
    before = gpu.live()
    gpu.set(memory_left=10_000)  # enough for the input, not for the output
    with pytest.raises(CudaError, match="cudaErrorMemoryAllocation") as caught:
        runtime.open(conv_net(16), TARGET)
    assert type(caught.value) is CudaError
    assert gpu.live() == before
    gpu.set(memory_left=-1)
    runtime.open(conv_net(16), TARGET).close()


def test_layers_that_weak_typing_left_in_fp32_are_named(gpu: Gpu) -> None:
    gpu.install("8.6.1")
    board = board_of(gpu, HALF)
    assert dict(board.fingerprint.flags)["typing"] == "weak"
    assert measured(board).warnings == ()
    gpu.script.fp32_layers = ("conv1",)
    (warning,) = board_of(gpu, HALF).measure({"net": conv_net(32)}, protocol=QUICK)["net"].warnings
    assert warning.startswith("mixed_precision: conv1")
    assert "TensorRT kept layers in fp32 (conv1" in explain(warning)


def test_such_layers_can_be_refused(gpu: Gpu, tmp_path: Path) -> None:
    gpu.install("10.3.0")
    board = board_of(gpu, HALF, mixed="refuse")
    gpu.script.fp32_layers = ("conv1",)
    before = gpu.live()
    table, error = profiled(board, tmp_path)
    assert type(error) is MixedPrecision
    assert "weak typing left 1 layers in fp32: conv1" in str(error)
    assert table.rows == ()
    assert gpu.live() == before


def test_the_reference_kernel_is_never_refused(gpu: Gpu) -> None:
    gpu.install("10.3.0")
    gpu.script.fp32_layers = ("stem",)
    with board_of(gpu, HALF, mixed="refuse") as board:
        assert measured(board).warnings == ()
        with pytest.raises(MixedPrecision, match="weak typing left 1 layers in fp32: stem"):
            board.measure({"reference": to_precision(reference_model(), "fp16")}, protocol=QUICK)


def test_strong_typing_is_not_suspected(gpu: Gpu) -> None:
    gpu.script.fp32_layers = ("conv1",)
    board = board_of(gpu, HALF, mixed="refuse")
    assert dict(board.fingerprint.flags)["typing"] == "strong"
    assert measured(board).warnings == ()


def test_a_host_that_is_too_slow_is_named(gpu: Gpu) -> None:
    board = board_of(gpu, graph=False)
    gpu.set(launch_ns=50_000)
    assert "host_bound" in measured(board).warnings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count_error": 35}, r"no working driver: cudaErrorInsufficientDriver \(35\)"),
        ({"count_error": 100}, "no GPU that CUDA can use"),
        ({"count_error": 999}, "cannot count the GPUs"),
        ({"devices": 0}, "no GPU that CUDA can use"),
    ],
)
def test_without_a_gpu_it_is_the_environment(settings: dict[str, float], message: str, gpu: Gpu) -> None:
    gpu.set(**settings)
    with pytest.raises(DeviceError, match=message) as caught:
        gpu.runtime()
    assert caught.value.hint


@pytest.mark.parametrize(
    ("code", "message"), [(100, "CUDA sees no GPU on this Jetson"), (801, "cannot count the GPUs: cudaErrorUnknown")]
)
def test_an_account_that_may_not_use_a_jetsons_gpu(
    code: int, message: str, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeJetson(tmp_path)
    monkeypatch.setattr("hwprune.runtimes._tensorrt.cuda.ROOT", tmp_path)
    gpu.set(count_error=code)
    with pytest.raises(DeviceError, match=message) as caught:
        gpu.runtime()
    assert "sudo usermod -aG video,render $USER" in caught.value.hint


def test_a_gpu_number_that_is_not_there_is_named(gpu: Gpu) -> None:
    with pytest.raises(DeviceError, match="no GPU number 3: this machine has 1") as caught:
        gpu.runtime(gpu=3)
    assert caught.value.hint == "use 0 to 0"
