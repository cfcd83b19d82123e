"""What the command line says of an output that nobody takes and of files that are no networks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from cli_fakes import Done
from onnx import TensorProto, helper, numpy_helper

from hwprune.testing.runtimes import conv_net

Hw = Callable[..., Done]


def test_a_full_disk_behind_stdout_is_told_once_and_without_a_traceback() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hwprune", "devices", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 3
    assert done.stderr == "error: the system: No space left on device\nhint: free some space\n"


def test_a_ratio_needs_two_rounds(hw: Hw, tmp_path: Path) -> None:
    for name in ("a.ONNX", "b.onnx"):
        (tmp_path / name).write_bytes(conv_net(4))
    found = hw("bench", str(tmp_path / "a.ONNX"), str(tmp_path / "b.onnx"), "--rounds", "1")
    assert found.code == 2
    assert "1 round gives no interval of a ratio" in found.err


def test_a_file_of_another_name_is_no_model_name(hw: Hw, tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(b"?")
    found = hw("bench", str(tmp_path / "c.bin"))
    assert found.code == 2
    assert "is a file, and not called .onnx" in found.err


def test_a_network_that_fails_while_it_runs_is_not_our_bug(hw: Hw, tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.ones((1, 3), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["out"])],
        "lookup",
        [helper.make_tensor_value_info("index", TensorProto.INT64, [1, 2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2, 3])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "lookup.onnx")
    found = hw("bench", str(tmp_path / "lookup.onnx"), "--protocol", "quick")
    assert found.code == 2
    assert "does not run on made-up inputs" in found.err
    assert "Gather" in found.err
