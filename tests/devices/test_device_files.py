"""Device files: the shipped ones, the search path, aliases, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprune.core import plugins
from hwprune.core.errors import UsageError
from hwprune.core.measurement import Target
from hwprune.devices.files import devices, find_device, read_device, resolve, search_path

MINE = """
schema = 1
name = "bench"
aliases = ["desk"]
description = "the machine on the desk"
[runtimes.simulated]
options = {tile = 8}
[runtimes.onnxruntime]
precisions = ["fp32"]
"""


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def test_shipped_files_load_and_name_runtimes_that_exist() -> None:
    found = {info.name: info for info in devices()}
    assert {"cpu", "simulated"} <= set(found)
    for info in found.values():
        assert info.description
        assert set(info.runtimes) <= set(plugins.names("hwprune.runtimes"))
    labels = [label for info in found.values() for label in (info.name, *info.aliases)]
    assert len(labels) == len(set(labels))


def test_the_simulated_device_says_so() -> None:
    assert find_device("sim").description.startswith("SIMULATED")
    assert resolve(Target(device="sim")).label().startswith("SIMULATED simulated")


def test_a_device_file_says_how_long_a_build_may_take(tmp_path: Path) -> None:
    text = 'schema = 1\nname = "slow"\n[connection]\nkind = "ssh"\nbuild_s = {}\n[runtimes.simulated]\n'
    assert read_device(write(tmp_path, text.format(1800))).connection.build_s == 1800
    with pytest.raises(UsageError, match="build_s = -1 is no time"):
        read_device(write(tmp_path, text.format(-1)))


def test_devices_are_found_by_alias_and_with_a_suggestion() -> None:
    assert find_device("host").name == "cpu"
    with pytest.raises(UsageError, match=r"unknown device 'cpi'\. Did you mean 'cpu'\?") as caught:
        find_device("cpi")
    assert "simulated" in caught.value.hint


def test_own_files_are_read_and_later_folders_win(tmp_path: Path) -> None:
    write(tmp_path / "config" / "hwprune" / "devices", MINE)
    assert find_device("desk").description == "the machine on the desk"
    local = write(tmp_path / "devices", MINE.replace("the machine on the desk", "another"))
    assert find_device("bench").description == "another"
    assert find_device("bench").source == str(local.relative_to(tmp_path))
    assert len(search_path()) == 3


def test_a_target_left_at_the_default_gets_the_devices_runtime(tmp_path: Path) -> None:
    write(tmp_path / "devices", MINE.replace("[runtimes.onnxruntime]\n", "[runtimes.other]\n"))
    assert resolve(Target(device="desk")) == Target("bench", "simulated")
    assert resolve(Target()) == Target()


def test_a_runtime_may_name_a_precision() -> None:
    assert resolve(Target("cuda", "tensorrt:fp16")) == Target("cuda", "tensorrt", "fp16")
    assert resolve(Target("cuda", ":int8", batch=4)) == Target("cuda", "tensorrt", "int8", batch=4)
    with pytest.raises(UsageError, match="with tensorrt does not offer the precision bf16"):
        resolve(Target("cuda", "tensorrt:bf16"))
    with pytest.raises(UsageError, match="unknown precision 'half'"):
        resolve(Target("cuda", "tensorrt:half"))


def test_a_runtime_or_precision_the_device_lacks() -> None:
    with pytest.raises(UsageError, match=r"does not offer the runtime 'onnxruntim3'\. Did you mean 'onnxruntime'\?"):
        resolve(Target(runtime="onnxruntim3"))
    with pytest.raises(UsageError, match=r"device 'cpu' does not offer the runtime 'tensorrt'$") as elsewhere:
        resolve(Target(runtime="tensorrt"))
    assert "tensorrt is offered by cuda, jetson-agx-orin" in str(elsewhere.value.hint)
    with pytest.raises(UsageError, match="does not offer the precision int8") as caught:
        resolve(Target(precision="int8"))
    assert caught.value.hint == "it offers: fp32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE.replace("schema = 1", "schema = 9"), "schema 9 is not 1"),
        (MINE.replace("aliases", "alias"), "unknown key 'alias'. Did you mean 'aliases'?"),
        (MINE.replace("precisions", "precision"), "runtimes.onnxruntime: unknown key 'precision'"),
        ('schema = 1\nname = "bare"\n', "device 'bare' offers no runtime"),
        (MINE + "[connection]\nkind = 'carrier pigeon'\n", "not one of local"),
        ("name = ", "not a TOML file"),
    ],
)
def test_bad_files_are_named_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=r"mine\.toml") as caught:
        read_device(path)
    assert message in caught.value.message


def test_an_alias_that_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "devices", MINE.replace("desk", "cpu"))
    with pytest.raises(UsageError, match="'cpu' is already a name of device"):
        devices()
