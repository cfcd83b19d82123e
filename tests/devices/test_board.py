"""Boards: the whole way from a target to measurements, simulated exactly and on this CPU loosely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwprune.core.comparison import compare
from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.events import Event, Progress
from hwprune.core.measurement import Measurement, Protocol, Target
from hwprune.devices import Board, connect
from hwprune.devices import board as board_module
from hwprune.devices.reference import REFERENCE_NAME, doctor_model, reference_model
from hwprune.runtimes.simulated import SimulatedRuntime, SimulatedSession
from hwprune.testing.runtimes import conv_net

SIMULATED = Target(device="simulated")


@pytest.fixture
def board() -> Board:
    return connect(SIMULATED)


class TestSimulated:
    def test_everything_says_simulated(self, board: Board) -> None:
        measured = board.measure({"net": conv_net(16)}, protocol=Protocol.sample())["net"]
        assert board.simulated
        assert measured.simulated
        assert measured.to_json()["simulated"]
        assert measured.clock == "virtual"
        assert board.label().startswith("SIMULATED")
        assert board.checks()[0].detail.startswith("SIMULATED")

    def test_measures_the_analytic_latency(self, board: Board) -> None:
        model = conv_net(64)
        expected = sum(layer.latency_ms for layer in board.layers(model))
        measured = board.measure({"net": model}, protocol=Protocol.default())["net"]
        assert measured.latency_ms == pytest.approx(expected, rel=0.005)
        assert measured.converged
        assert measured.warnings == ()

    def test_compares_interleaved_networks(self, board: Board) -> None:
        found = board.measure({"wide": conv_net(64), "narrow": conv_net(32)}, protocol=Protocol.default())
        verdict = compare(found["wide"], found["narrow"])
        assert verdict.verdict == "faster"
        assert verdict.simulated
        assert list(found) == ["wide", "narrow"]

    def test_a_comparison_is_that_of_networks_beside_the_first(self, board: Board) -> None:
        models = {"wide": conv_net(64), "same": conv_net(64), "narrow": conv_net(32)}
        same, narrow = board.compare(models, protocol=Protocol.default())
        times = {name: sum(layer.latency_ms for layer in board.layers(model)) for name, model in models.items()}
        assert (same.baseline, same.subject, same.verdict) == ("wide", "same", "no difference shown")
        assert narrow.ratio == pytest.approx(times["narrow"] / times["wide"], rel=0.01)
        assert narrow.verdict == "faster"
        assert narrow.simulated
        assert board.compare({"alone": conv_net(16)}, protocol=Protocol.default()) == ()

    def test_same_seed_same_document(self) -> None:
        documents = []
        for _ in range(2):
            with connect(SIMULATED) as board:
                documents.append(board.measure({"a": conv_net(16)}, protocol=Protocol.quick(), seed=3)["a"].to_json())
        assert documents[0] == documents[1]
        assert Measurement.from_json(documents[0]).to_json() == documents[0]

    def test_a_given_reference_fixes_the_scale_and_the_drift_is_told(self) -> None:
        first = connect(SIMULATED)
        second = connect(SIMULATED, reference_ms=2 * first.reference_ms)
        assert first.reference_drift == 0
        assert second.reference_drift == pytest.approx(-0.5)
        one, two = (item.measure({"a": conv_net(32)}, protocol=Protocol.quick())["a"] for item in (first, second))
        assert two.latency_ms == pytest.approx(2 * one.latency_ms, rel=1e-6)

    def test_the_reference_kernel_is_part_of_the_fingerprint(self, board: Board) -> None:
        assert dict(board.fingerprint.flags)["reference"] == REFERENCE_NAME
        assert board.fingerprint.device == "simulated"

    def test_progress_is_reported(self, board: Board) -> None:
        events: list[Event] = []
        board.measure({"a": conv_net(16), "b": conv_net(16)}, protocol=Protocol.quick(), on_event=events.append)
        done = [event for event in events if isinstance(event, Progress)]
        assert [event.done for event in done] == list(range(1, len(done) + 1))
        assert all(event.done <= event.total for event in done)
        assert {event.detail for event in done} == {"a", "b"}

    def test_infers_with_real_outputs(self, board: Board) -> None:
        found = board.infer(conv_net(16), {"input": np.ones((1, 8, 14, 14), np.float32)})
        assert found[0].shape == (1, 16, 14, 14)

    def test_several_inputs_take_one_session_which_is_closed_before_timing(self) -> None:
        heard: list[str] = []

        class Heard(SimulatedRuntime):
            def open(self, model: bytes, target: Target) -> SimulatedSession:
                session = super().open(model, target)
                name = "reference" if model == reference_model() else str(len(model))
                heard.append(f"open {name}")
                close = session.close
                session.close = lambda: (heard.append(f"close {name}"), close())[1]  # type: ignore[method-assign]
                return session

        first, second = conv_net(16), conv_net(32)
        image = {"input": np.ones((1, 8, 14, 14), np.float32)}
        with Board(SIMULATED, Heard()) as board:
            for model in (first, first, second):
                board.infer(model, image)
            board.measure({"a": first}, protocol=Protocol.sample())
        one, other = len(first), len(second)
        assert heard[1:5] == [f"open {one}", f"close {one}", f"open {other}", f"close {other}"]
        assert [word for word in heard if word.startswith("open")].count(f"open {one}") == 2
        assert heard[-1] == "close reference"

    def test_a_reference_that_cannot_be_calibrated_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        closed: list[str] = []
        monkeypatch.setattr(SimulatedSession, "close", lambda session: closed.append("reference"))

        def fails(*_: object) -> None:
            raise DeviceError("the clock stands still")

        monkeypatch.setattr(board_module, "calibrate", fails)
        with pytest.raises(DeviceError, match="stands still"):
            Board(SIMULATED, SimulatedRuntime())
        assert closed == ["reference"]

    def test_refuses_nonsense(self, board: Board) -> None:
        with pytest.raises(UsageError, match="nothing to measure"):
            board.measure({}, protocol=Protocol.quick())
        with pytest.raises(UsageError, match="runs must be 1 or more, not 0"):
            board.layers(conv_net(16), runs=0)
        with pytest.raises(UsageError, match="reference_ms must be a positive number, not 0"):
            connect(SIMULATED, reference_ms=0.0)
        with pytest.raises(UsageError, match="cannot load the model"):
            board.measure({"a": b"junk"}, protocol=Protocol.quick())

    def test_options_of_a_device_file_reach_the_runtime(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "devices").mkdir()
        text = 'schema = 1\nname = "mine"\n[runtimes.simulated]\noptions = {tile = 8}\n'
        (tmp_path / "devices" / "mine.toml").write_text(text)
        assert dict(connect(Target(device="mine")).fingerprint.flags)["tile"] == "8"
        (tmp_path / "devices" / "mine.toml").write_text(text.replace("tile", "tiles"))
        with pytest.raises(UsageError, match=r"unknown key 'tiles'\. Did you mean 'tile'\?"):
            connect(Target(device="mine"))


class TestThisCpu:
    def test_wide_is_slower_than_narrow(self) -> None:
        with connect(Target()) as board:
            protocol = Protocol("test", rounds_min=3, rounds_max=3, laps=8, patience_s=0.02, retries=0)
            found = board.measure({"wide": conv_net(128), "narrow": conv_net(16)}, protocol=protocol)
            verdict = compare(found["wide"], found["narrow"])
        assert verdict.ratio < 0.8
        assert found["wide"].latency_ms > 0
        assert found["wide"].clock == "thread_cpu"
        assert not found["wide"].simulated

    def test_layers_and_outputs(self) -> None:
        with connect(Target(), reference_ms=0.05) as board:
            layers = board.layers(conv_net(32), runs=3)
            output = board.infer(conv_net(32), {"input": np.ones((1, 8, 14, 14), np.float32)})[0]
        convolutions = [layer.name for layer in layers if layer.kind == "Conv"]
        assert len(convolutions) == 3
        assert convolutions[-1].startswith("conv2"), "not named after the tensor `output`"
        assert output.shape == (1, 32, 14, 14)


def test_reference_and_probe_are_deterministic() -> None:
    first = reference_model(), doctor_model(2)
    reference_model.cache_clear()
    doctor_model.cache_clear()
    assert (reference_model(), doctor_model(2)) == first
