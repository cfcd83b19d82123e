"""Files survive crashes: atomic replacement, a journal that loses only the record that was touched, a lock."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import hwprune
from hwprune.core import files
from hwprune.core.errors import DeviceError, RunError, UsageError


def test_atomic_write_replaces_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    files.write_json(path, {"a": 1.5, "bad": float("nan"), "t": (1, 2)})
    assert files.read_json(path) == {"a": 1.5, "bad": None, "t": [1, 2]}
    files.atomic_write_text(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    files.atomic_write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DeviceError, match=r"cannot write .*x: No space left") as caught:
        files.atomic_write_text(path, "new")
    assert "free some disk space" in caught.value.hint
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_read_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.json"):
        files.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match=r"bad\.json is not a JSON document"):
        files.read_json(tmp_path / "bad.json")


def _follows_the_locale(call: ast.Call) -> bool:
    """Whether a call opens a text file, or a process that talks text, and leaves the encoding to the machine."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
        values = [item.value for item in [*call.args[:2], given.get("mode")] if isinstance(item, ast.Constant)]
        modes = [value for value in values if isinstance(value, str) and set(value) <= set("rwaxbt+") and value]
        of_a_file = isinstance(call.func, ast.Name) and name == "open"
        return (of_a_file or bool(modes)) and not any("b" in mode for mode in modes)
    return any(isinstance(given.get(key), ast.Constant) for key in ("text", "universal_newlines"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("open(path)", True),
        ("open(path, 'a')", True),
        ("path.open('w')", True),
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("run(words, text=True)", True),
        ("open(path, 'rb')", False),
        ("os.fdopen(number, mode='wb')", False),
        ("open(path, 'a', encoding='utf-8')", False),
        ("path.read_text('utf-8')", False),
        ("runtime.open(model, target)", False),
    ],
)
def test_calls_that_follow_the_locale_are_found(line: str, expected: bool) -> None:
    assert _follows_the_locale(ast.parse(line, mode="eval").body) is expected  # type: ignore[arg-type]


def test_no_text_of_ours_depends_on_the_locale() -> None:
    package = Path(hwprune.__file__).parent
    found = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _follows_the_locale(node)
    ]
    assert found == []


def test_journal_reads_back_what_was_appended(tmp_path: Path) -> None:
    journal = files.Journal(tmp_path / "j.jsonl")
    assert journal.read() == ([], 0)
    records = [{"n": n, "text": "é\n" * n} for n in range(20)]
    for record in records:
        journal.append(record)
    assert journal.read() == (records, 0)


def test_torn_tail_costs_one_record_and_never_the_next(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = files.Journal(path)
    for n in range(3):
        journal.append({"n": n})
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        journal.append({"n": 99})
        records, damaged = journal.read()
        kept = [record["n"] for record in records]
        assert kept in ([0, 1, 99], [0, 1, 2, 99])
        assert damaged == (0 if size == last or kept[2] == 2 else 1)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = files.Journal(path)
    for n in range(5):
        journal.append({"n": n, "value": "abcdef"})
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(200):
        position = rng.randrange(len(whole))
        broken = bytearray(whole)
        broken[position] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(broken))
        records, _ = journal.read()
        assert len(records) >= 3
        assert all(record == {"n": record["n"], "value": "abcdef"} for record in records)


def test_short_write_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    journal = files.Journal(tmp_path / "j.jsonl")
    journal.append({"n": 0})
    size = journal.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        with pytest.raises(DeviceError, match="cannot write"):
            journal.append({"n": 1, "long": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert journal.read() == ([{"n": 0}], 0)
    journal.append({"n": 2})
    assert journal.read() == ([{"n": 0}, {"n": 2}], 0)


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    """One writer is half way through its record when another begins: both records are whole."""
    journal, first = files.Journal(tmp_path / "j.jsonl"), files.Journal(tmp_path / "first.jsonl")
    first.append({"n": 0})
    line = first.path.read_bytes()
    second = threading.Thread(target=journal.append, args=({"n": 1},))
    with journal.path.open("ab", buffering=0) as half_way:
        fcntl.flock(half_way, fcntl.LOCK_EX)
        half_way.write(line[:12])
        second.start()
        second.join(timeout=0.3)
        half_way.write(line[12:])
    second.join(timeout=60)
    assert journal.read() == ([{"n": 0}, {"n": 1}], 0)


_WRITER = """
import sys
from hwprune.core.files import Journal
journal = Journal(sys.argv[1])
for n in range(100000):
    journal.append({"n": n})
    print(n, flush=True)
"""


def test_kill_loses_no_acknowledged_record(tmp_path: Path) -> None:
    rng = random.Random(1)
    for attempt in range(5):
        path = tmp_path / f"{attempt}.jsonl"
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.05))
        process.kill()
        acknowledged = [int(line) for line in process.stdout.read().split() if line]
        process.stdout.close()
        process.wait()
        records, damaged = files.Journal(path).read()
        numbers = [record["n"] for record in records]
        assert damaged <= 1
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > max(acknowledged, default=0)


def test_lock_names_the_holder_and_is_freed(tmp_path: Path) -> None:
    with files.lock(tmp_path), pytest.raises(RunError, match=f"in use by process {os.getpid()}"), files.lock(tmp_path):
        pass
    with files.lock(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_unwritable_folder_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot write"):
        files.atomic_write_text(tmp_path / "file" / "x", "text")
    with pytest.raises(DeviceError, match="cannot write"):
        files.Journal(tmp_path / "file" / "x").append({})
