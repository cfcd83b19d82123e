"""Remote devices for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_devices import Cuts, Device, SshServer, ssh_server


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device of the scripted runtime, reached without SSH."""
    return Device(tmp_path)


@pytest.fixture
def cuts() -> Iterator[Cuts]:
    """Where a test cuts the connection."""
    made = Cuts()
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """One OpenSSH server for all tests that need one."""
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running
