"""The agent on this machine, without SSH: connections that break at every message, and whole sides that go."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from remote_devices import (
    MODELS,
    PATIENT,
    RUNTIME_FILE,
    SAMPLE,
    Cuts,
    CuttingTransport,
    Device,
    SpoilingTransport,
    children,
    eventually,
    model,
)

from hwprune.core.errors import DeviceError
from hwprune.core.events import Caution, Event
from hwprune.devices.agent import supervisor
from hwprune.devices.remote.transport import CommandTransport

UP = ("hello", "accepted", "stage", "built", "round", "crash", "result")
DOWN = ("hello", "blob", "job")


class TestLostConnection:
    @pytest.mark.parametrize("way", [*((b"up", kind) for kind in UP), *((b"down", kind) for kind in DOWN)])
    def test_cut_at_every_message(self, device: Device, cuts: Cuts, way: tuple[bytes, str], tmp_path: Path) -> None:
        direction, kind = way
        text = f'"type":"{kind}"'.encode()
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        models = dict(MODELS)
        if kind == "crash":
            models["a"] = model(0.2, name="a", do="kill", once=str(tmp_path / "once"))
        with device.board() as board:
            cuts.up, cuts.down = (text, b"") if direction == b"up" else (b"", text)
            if kind == "hello":  # is said at connecting only, and that is after a loss
                cuts.up, cuts.down, cuts.count = (b'"accepted"', b"", 1) if direction == b"up" else (b"", b'"job"', 1)
                first = cuts.take

                def take(where: bytes, data: bytes) -> bool:
                    hit = first(where, data)
                    if hit and cuts.count == 1:
                        cuts.count = 2
                        cuts.up, cuts.down = (text, b"") if direction == b"up" else (b"", text)
                    return hit

                cuts.take = take  # type: ignore[method-assign]
            events: list[Event] = []
            found = board.measure(models, protocol=SAMPLE, on_event=events.append)
            again = board.measure({"c": model(0.1, name="c")}, protocol=SAMPLE)
        assert cuts.done == cuts.count
        assert {name: item.latency_ms for name, item in found.items()} == pytest.approx({"a": 0.2, "b": 0.4}, rel=0.02)
        assert again["c"].latency_ms == pytest.approx(0.1, rel=0.02)
        times = {name: device.builds().count(name) for name in "abc"}
        assert max(times.values()) <= 2
        if kind in ("stage", "built", "round", "result"):
            assert times == {"a": 1, "b": 1, "c": 1}, "a job in hand is finished, and not done again"
        back = [event.text for event in events if isinstance(event, Caution) and "is back" in event.text]
        assert len(back) == 1
        assert not list((device.cache / "spool").glob("*"))

    def test_cut_at_goodbye(self, device: Device, cuts: Cuts) -> None:
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        with device.board() as board:
            assert board.client.hello is not None
            there = [board.client.hello.process]
            cuts.down = b'"type":"bye"'
        assert cuts.done == 1
        assert eventually(there)

    def test_a_supervisor_that_is_killed(self, device: Device) -> None:
        events: list[Event] = []
        with device.board() as board:
            assert board.client.hello is not None
            there = [board.client.hello.process, *children(board.client.hello.process)]
            os.kill(there[0], signal.SIGKILL)
            assert eventually(there), "the worker ends with its supervisor"
            found = board.measure(MODELS, protocol=SAMPLE, on_event=events.append)
        assert found["a"].latency_ms == pytest.approx(0.2, rel=0.02)
        assert any("is back" in event.text for event in events if isinstance(event, Caution))

    def test_a_device_that_was_started_again(self, device: Device, cuts: Cuts, tmp_path: Path) -> None:
        boot = tmp_path / "boot_id"
        boot.write_text("one")
        source = Path(supervisor.__file__).read_text().replace("/proc/sys/kernel/random/boot_id", str(boot))
        device.extra = {"hwprune/devices/agent/supervisor.py": source}
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        events: list[Event] = []
        with device.board() as board:
            cuts.up = b'"accepted"'
            boot.write_text("two")
            board.measure(MODELS, protocol=SAMPLE, on_event=events.append)
            assert any("it was started again" in event.text for event in events if isinstance(event, Caution))
            cuts.count = 2
            device.state.write_text("free")
            with pytest.raises(DeviceError, match=r"not as it was before .* clocks: locked != free") as caught:
                board.measure({"c": model(name="c", do="kill")}, protocol=SAMPLE)
            assert "hwprune doctor --device board" in caught.value.hint

    def test_clocks_that_cannot_be_asked_after_a_restart(self, device: Device, cuts: Cuts, tmp_path: Path) -> None:
        """NVML does not tell whether clocks are locked, and a restart unlocks them: nothing more is measured."""
        boot = tmp_path / "boot_id"
        boot.write_text("one")
        source = Path(supervisor.__file__).read_text().replace("/proc/sys/kernel/random/boot_id", str(boot))
        runtime = RUNTIME_FILE.read_text().replace("flags = (", 'flags = (("gpu", "RTX"), ')
        device.extra = {"hwprune/devices/agent/supervisor.py": source, "hwprune/runtimes/scripted.py": runtime}
        device.wrap = lambda transport: CuttingTransport(transport, cuts)
        with device.board() as board:
            cuts.up = b'"accepted"'
            board.measure(MODELS, protocol=SAMPLE)
            assert cuts.done == 1, "a lost connection alone is no restart"
            cuts.count = 2
            boot.write_text("two")
            for name in "cd":
                with pytest.raises(DeviceError, match="started again: its clocks may not be locked") as caught:
                    board.measure({name: model(name=name, do="kill")}, protocol=SAMPLE)
            assert "nvidia-smi -lgc" in caught.value.hint
            assert "hwprune doctor --device board" in caught.value.hint
        assert "d" not in device.builds()
        with device.board() as board:
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0, "the same command goes on"

    def test_what_a_worker_prints_is_no_refused_login(self, device: Device) -> None:
        said = 'import os\nos.write(2, b"NvRmMemInitNvmap failed with Permission denied\\n")\n'
        device.extra = {"hwprune/devices/agent/__init__.py": said}
        with device.board() as board:
            assert board.client.hello is not None
            os.kill(board.client.hello.process, signal.SIGKILL)
            assert board.measure(MODELS, protocol=SAMPLE)["a"].latency_ms > 0

    def test_a_damaged_line_is_a_lost_connection(self, device: Device) -> None:
        state = {"damaged": 0}

        def damage(line: bytes) -> bytes:
            if b'"result"' in line and b'"measure"' not in line and b'"value":{"a"' in line and not state["damaged"]:
                state["damaged"] = 1
                return line.replace(b'"subject":"a"', b'"subject":"A"')
            return line

        device.wrap = lambda transport: SpoilingTransport(transport, up=damage)
        with device.board() as board:
            found = board.measure({"a": MODELS["a"]}, protocol=SAMPLE)
        assert state["damaged"] == 1
        assert found["a"].subject == "a"
        assert device.builds() == ["a"]

    def test_it_gives_up_in_the_end(self, device: Device) -> None:
        device.patience = type(PATIENT)(silence_s=120, reconnect_s=0.2, first_pause_s=0.05)
        with device.board() as board:
            assert board.client.hello is not None
            process = board.client.hello.process
            board.client._transport = CommandTransport(("false",), "board")
            os.kill(process, signal.SIGKILL)
            with pytest.raises(DeviceError, match="did not come back") as caught:
                board.measure(MODELS, protocol=SAMPLE)
        assert "same command goes on" in caught.value.hint
