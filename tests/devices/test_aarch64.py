"""An aarch64 board stood in for by qemu: the agent starts on its Python, says what it is, and measures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from remote_devices import PATIENT, REFERENCE, SCRIPTED, model, scripted_bundle
from scripted_runtime import ScriptedRuntime

from hwprune.core.measurement import Protocol
from hwprune.devices import WorkerDied
from hwprune.devices.agent.bootstrap import STARTER
from hwprune.devices.remote.board import RemoteBoard
from hwprune.devices.remote.client import AgentClient
from hwprune.devices.remote.transport import CommandTransport

pytestmark = pytest.mark.slow


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A program that behaves as `python3` of the board, for the supervisor to start its worker with, too."""
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    root = os.environ.get("HWPRUNE_AARCH64_ROOT", "")
    if qemu is None or not (Path(root) / "usr/bin/python3").exists():
        pytest.skip("needs qemu-user-static, and HWPRUNE_AARCH64_ROOT as tools/aarch64_python.sh makes it")
    program = tmp_path / "python3"
    program.write_text(f'#!/bin/sh\nexec {qemu} -L {root} -0 {program} {root}/usr/bin/python3 "$@"\n')
    program.chmod(0o755)
    return program


def test_the_agent_measures_on_aarch64(python: Path, tmp_path: Path) -> None:
    command = (str(python), "-u", "-I", "-c", STARTER)
    transport = CommandTransport(command, "arm", {"HWPRUNE_CACHE": str(tmp_path / "device")})
    client = AgentClient(transport, scripted_bundle(), label="arm", patience=PATIENT)
    with RemoteBoard(SCRIPTED, ScriptedRuntime(), client, reference=REFERENCE) as board:
        assert client.hello is not None
        assert client.hello.machine == "aarch64"
        found = board.measure({"a": model(0.2), "b": model(0.4)}, protocol=Protocol.quick())
        assert found["a"].latency_ms == pytest.approx(0.2, rel=0.01)
        assert found["b"].latency_ms == pytest.approx(0.4, rel=0.01)
        with pytest.raises(WorkerDied, match="SIGSEGV"):
            board.measure({"c": model(do="segv")}, protocol=Protocol.sample())
        assert board.layers(model(0.3))[0].latency_ms == 0.3
