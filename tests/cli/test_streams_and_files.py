"""What the command line says of an output that nobody takes and of files that are no networks."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from cli_fakes import Done, FakeApi
from onnx import TensorProto, helper, numpy_helper

from hwprune.cli import main
from hwprune.cli._console import Streams
from hwprune.testing.runtimes import conv_net

Hw = Callable[..., Done]


def test_a_full_disk_behind_stdout_is_told_once_and_without_a_traceback() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hwprune", "devices", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 3
    assert done.stderr == "error: the system: No space left on device\nhint: free some space\n"


def test_files_are_utf_8_whatever_the_locale(workplace: Path) -> None:
    text = '# Größe\n[search]\nmodel = "é.py:f"\nlatency = "60%"\n'
    (workplace / "hwprune.toml").write_text(text, encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "hwprune", "search", "--print-config"],
        env={**os.environ, **ascii_only, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert 'model = "é.py:f"  # hwprune.toml\n'.encode() in done.stdout


def test_a_letter_that_the_terminal_lacks_costs_no_result(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.answers["export"] = SimpleNamespace(path=Path("é.onnx"), size_bytes=1, max_difference=0.0, tolerance=1.0)
    for words, printed in ((["export"], b"wrote ?.onnx (1 B)"), (["export", "--json"], rb'"path": "\u00e9.onnx"')):
        out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", out)
        assert main(words) == 0
        out.flush()
        assert printed in out.buffer.getvalue()  # type: ignore[attr-defined]


def test_json_is_utf_8_where_the_stream_is(hw: Hw, api: FakeApi) -> None:
    api.answers["export"] = SimpleNamespace(path=Path("é.onnx"), size_bytes=1, max_difference=0.0, tolerance=1.0)
    assert '"path": "é.onnx"' in hw("export", "--json").out


def test_a_user_without_a_home(
    hw: Hw, api: FakeApi, tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    api.answers["search"] = ZeroDivisionError("boom")
    done = hw("search", "--latency", "60%")
    assert done.code == 4
    (log,) = (tmp_path / "tmp").glob("hwprune-*/bug-*.txt")
    assert str(log) in done.err
    monkeypatch.setitem(sys.modules, "hwprune.api", api.real)
    monkeypatch.setattr("hwprune.api", api.real)
    assert "cpu" in hw("devices").out
    new = hw("devices", "new", "mine", "--from", "jetson-orin-nano", "--host", "me@board")
    assert (new.code, new.err[:20]) == (3, "error: cannot write ")


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


PRINTING = """
print("made here")
from torch import nn

def net():
    print("called here")
    return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(1024, 10))
"""


@pytest.mark.parametrize(("shape", "code"), [("1x1x8x8", 0), ("1x3x8x8", 2)])
def test_what_a_users_file_prints_is_no_part_of_the_document(hw: Hw, workplace: Path, shape: str, code: int) -> None:
    (workplace / "printing.py").write_text(PRINTING)
    done = hw("inspect", "printing.py:net", "--input", shape, "--json")
    assert (done.code, json.loads(done.out)["schema"]) == (code, "hwprune.inspect/1")
    assert "called here" in done.err


def test_ctrl_c_is_told_and_documented() -> None:
    """In a verb that has nothing to save; where it cuts off an import, other errors follow from it."""
    code = (
        "import sys; import hwprune.api as api\n"
        "def bench(*given, **options):\n"
        "    try:\n"
        "        raise KeyboardInterrupt\n"
        "    except BaseException:\n"
        "        if '--laps' in sys.argv: half.a_module\n"
        "        raise\n"
        "api.bench = bench\n"
        "from hwprune.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for more in ([], ["--laps", "5"]):
        command = [sys.executable, "-c", code, "bench", "a.onnx", "--json", *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (130, "error: interrupted\n")
        assert json.loads(done.stdout)["exit_code"] == 130


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_stream_that_is_closed_costs_nothing(closed: str) -> None:
    command = f'exec "$0" -m hwprune devices --json {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_path_may_begin_with_the_home_folder(hw: Hw, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell leaves the ~ of `--run-dir=~/x` as it is, and that of a quoted name."""
    monkeypatch.setenv("HOME", "/home/of mine")
    path = Path("/home/of mine/x.onnx")
    api.answers["export"] = SimpleNamespace(path=path, size_bytes=1, max_difference=0.0, tolerance=1.0)
    done = hw("export", "-o", "~/x.onnx", "--run-dir=~/run")
    assert api.calls[-1][1][2] == path
    assert api.calls[-1][1][0] == "/home/of mine/run"
    (line,) = [line for line in done.err.splitlines() if line.startswith("next: ")]
    assert shlex.split(line.removeprefix("next: ")) == ["hwprune", "bench", str(path)]


def test_a_folder_is_no_file_to_write(hw: Hw, workplace: Path) -> None:
    (workplace / "printing.py").write_text(PRINTING)
    done = hw("export", "printing.py:net", "--input", "1x1x8x8", "-o", str(workplace))
    assert (done.code, done.err.splitlines()[-2:]) == (
        2,
        [f"error: cannot write {workplace}: it is a folder", "hint: name a file"],
    )


def test_bench_takes_the_shape_that_it_asks_for(hw: Hw, workplace: Path) -> None:
    (workplace / "printing.py").write_text(PRINTING)
    command = ("bench", "printing.py:net", "--device", "simulated", "--protocol", "quick")
    asked = hw(*command)
    assert (asked.code, asked.err.splitlines()[-1]) == (2, "hint: add --input 1x3x224x224")
    assert hw(*command, "--input", "1x1x8x8").code == 0


def test_ctrl_c_while_python_imports_is_no_traceback() -> None:
    code = """
import sys
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, CtrlC())
from hwprune.cli import main
from hwprune.cli._console import Streams
sys.exit(main(["search"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_ctrl_c_while_an_interrupt_is_told_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of two is often still on its way when the first has ended the job."""

    def impatient(*words: object) -> None:
        signal.raise_signal(signal.SIGINT)

    def interrupted(*words: object, **flags: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hwprune.api.devices", interrupted)
    honest = Streams.error
    monkeypatch.setattr(Streams, "error", lambda self, error: (impatient(), honest(self, error))[1])
    before = signal.getsignal(signal.SIGINT)
    assert main(["devices"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before
