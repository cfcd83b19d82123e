"""The steps of the page on Jetsons go together: what one makes is what the next one takes."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from hwprune.devices import find_device
from hwprune.runtimes._tensorrt.builder import BuildOptions

PAGE = (Path(__file__).parents[2] / "docs" / "jetson.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


def _words(program: str, verb: str = "") -> list[str]:
    """The one command of the page that begins so."""
    (found,) = [line for line in LINES if line.startswith(f"{program} {verb}".strip())]
    return shlex.split(found, comments=True)


def _option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_profile_and_search_are_about_one_network() -> None:
    profile, search = _words("hwprune", "profile"), _words("hwprune", "search")
    assert profile[2] == search[2] == "mobilenetv2"
    for name in ("--data", "--device", "--runtime"):
        assert _option(profile, name) == _option(search, name)
    assert _option(profile, "--data").endswith("?size=224"), "images of mixed sizes cannot be loaded without"


def test_fit_names_the_table() -> None:
    assert _words("hwprune", "fit")[2].startswith("latency_tables/desk-orin/")


def test_the_file_that_is_exported_is_copied_and_built_and_the_plan_timed() -> None:
    name = _option(_words("hwprune", "export"), "--output")
    assert _words("scp")[1] == name
    build, timed = [shlex.split(line, comments=True) for line in LINES if "/bin/trtexec" in line]
    assert f"--onnx={name}" in build
    plan = next(word.partition("=")[2] for word in build if word.startswith("--saveEngine="))
    assert f"--loadEngine={plan}" in timed
    assert {Path(words[0]) for words in (build, timed)} == {Path("/usr/src/tensorrt/bin/trtexec")}


def test_trtexec_builds_with_our_settings() -> None:
    (build,) = [line.split() for line in LINES if "--saveEngine" in line]
    options = replace(BuildOptions(), **find_device("jetson-orin-nano").runtimes["tensorrt"].options)
    assert _option(_words("hwprune", "devices new"), "--from") == "jetson-orin-nano"
    assert f"--memPoolSize=workspace:{options.workspace_mib}" in build
    assert f"--builderOptimizationLevel={options.optimisation_level}" in build
    assert f"--maxAuxStreams={options.aux_streams}" in build
    assert f"--avgTiming={options.kernel_timings}" in build
    assert "--noTF32" in build


def test_clocks_are_locked_after_the_power_mode() -> None:
    steps = [line.split("#")[0].strip() for line in LINES if line.startswith("sudo ")]
    mode, lock = steps.index("sudo nvpmodel -m ID"), steps.index("sudo jetson_clocks --store && sudo jetson_clocks")
    assert mode < lock
