"""Writing a device file of one's own, and what the shipped ones offer."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprune.core.errors import UsageError
from hwprune.core.measurement import Target
from hwprune.devices import connect, find_device, resolve
from hwprune.devices.files import Connection, devices, measured_as, read_device
from hwprune.devices.new import new_device

ORIN = Connection("ssh", "nvidia@10.0.0.7", port=2222, identity_file="~/.ssh/orin", python="/usr/bin/python3")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def test_a_new_device_is_found_under_all_its_names(tmp_path: Path) -> None:
    made = new_device("bench-board", source="jetson-orin-nano", connection=ORIN, aliases=("jetson",))
    path = tmp_path / "config" / "hwprune" / "devices" / "bench-board.toml"
    assert made.source == str(path)
    assert read_device(path) == made
    assert find_device("jetson") == made
    assert made.connection == ORIN
    assert made.connection.address == "nvidia@10.0.0.7"
    assert made.runtimes == find_device("jetson-orin-nano").runtimes
    assert resolve(Target("jetson")).runtime == "tensorrt"
    assert not made.is_template


def test_the_options_of_the_pattern_come_along(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    text = (
        'schema = 1\nname = "slow"\n[runtimes.simulated]\nprecisions = ["fp32"]\noptions = {tile = 8, jitter = 0.5}\n'
    )
    (tmp_path / "devices" / "slow.toml").write_text(text)
    made = new_device("far", source="slow", connection=Connection("ssh", "far"))
    assert read_device(Path(made.source)).runtimes["simulated"].options == {"tile": 8, "jitter": 0.5}


def test_this_machines_description_becomes_the_hosts() -> None:
    assert new_device("pc", source="openvino", connection=Connection("ssh", "pc.local")).description == (
        "the CPU of pc.local through OpenVINO"
    )


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "-x", "a b", "a\nb", ".hidden", "x" * 64])
def test_a_name_that_cannot_be_one(tmp_path: Path, name: str) -> None:
    for names in ((name, ()), ("good", (name,))):
        with pytest.raises(UsageError, match="cannot be a device's name") as caught:
            new_device(names[0], source="cpu", connection=ORIN, aliases=names[1])
        assert "letter or digit first" in caught.value.hint
    assert not (tmp_path / "config").exists()


def test_a_name_that_is_taken() -> None:
    with pytest.raises(UsageError, match="'cpu' is already a name of device 'cpu'"):
        new_device("cpu", source="cpu", connection=ORIN)
    with pytest.raises(UsageError, match="'sim' is already a name of device 'simulated'"):
        new_device("mine", source="cpu", connection=ORIN, aliases=("sim",))
    new_device("mine", source="cpu", connection=ORIN)
    with pytest.raises(UsageError, match="'mine' is already a name") as caught:
        new_device("mine", source="cpu", connection=ORIN)
    assert "mine.toml" in caught.value.hint


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "hwprune" / "devices"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('schema = 1\nname = "other"\n[runtimes.simulated]\n')
    with pytest.raises(UsageError, match=r"mine\.toml exists already"):
        new_device("mine", source="cpu", connection=ORIN)


def test_without_host_or_pattern() -> None:
    with pytest.raises(UsageError, match="device 'mine' needs a host"):
        new_device("mine", source="cpu", connection=Connection("ssh"))
    with pytest.raises(UsageError, match=r"'jetson-orin' may be jetson-orin-nano or jetson-orin-nx"):
        new_device("mine", source="jetson-orin", connection=ORIN)


def test_what_is_shipped() -> None:
    found = {info.name: info for info in devices()}
    jetsons = {"jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-agx-xavier", "jetson-thor"}
    assert jetsons | {"raspberry-pi-5", "cpu", "cuda", "openvino", "simulated"} <= set(found)
    for name in (*jetsons, "raspberry-pi-5"):
        assert found[name].is_template
    for name in (*jetsons, "cuda"):
        assert list(found[name].runtimes) == ["tensorrt"]
        assert {"fp32", "fp16", "int8"} <= set(found[name].runtimes["tensorrt"].precisions)
    assert "tf32" not in found["jetson-agx-xavier"].runtimes["tensorrt"].precisions, "Volta has none"
    assert next(iter(found["raspberry-pi-5"].runtimes)) == "onnxruntime"
    assert not [label for info in found.values() for label in info.aliases if label == "jetson"], "the user's own name"


def test_devices_of_a_pool_are_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    for name in ("left", "right"):
        text = f'schema = 1\nname = "{name}"\npool = "desk"\n[runtimes.simulated]\n'
        (tmp_path / "devices" / f"{name}.toml").write_text(text)
    with connect(Target("left")) as left, connect(Target("right")) as right:
        assert left.fingerprint == right.fingerprint
        assert left.fingerprint.device == "desk"
    assert measured_as(Target("right")) == left.fingerprint.target()
