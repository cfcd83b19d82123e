"""A command that is refused leaves no run behind, and what older ones left is no run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fakes import Done

from hwprune.core.errors import DeviceError
from hwprune.core.events import Note, ignore
from hwprune.search.run_folder import RunFolder
from hwprune.search.settings import SearchSettings

Hw = Callable[..., Done]
SETTINGS = SearchSettings(latency_fraction=0.6)


@pytest.mark.parametrize(
    "words",
    [
        ("resnet2", "--data", "digits"),
        ("--device", "jetson-orin-nano"),
        ("--runtime", "tensorrt:fp16"),
        ("--data", "imagefolder:nowhere"),
        ("--weights", "nowhere.safetensors"),
        ("net.py:build", "--data", "digits", "--run-dir", "deep/down/here"),
    ],
)
def test_a_refused_search_leaves_no_folder(hw: Hw, workplace: Path, words: tuple[str, ...]) -> None:
    (workplace / "net.py").write_text("def build():\n    return 3\n")
    done = hw("search", "--latency", "60%", *words)
    assert done.code == 2, done.err
    assert {path.name for path in workplace.iterdir()} - {"__pycache__"} == {"net.py"}
    assert hw("explain", "last").err.startswith("error: there is no run in runs yet")


def refuse(path: Path) -> None:
    with RunFolder.open(path, SETTINGS, ignore) as folder:
        folder.emit(Note("traced"))
        raise DeviceError("no such board")


def test_what_was_told_before_a_refusal_goes_with_it(workplace: Path) -> None:
    with pytest.raises(DeviceError):
        refuse(workplace / "runs" / "refused")
    assert list(workplace.iterdir()) == []


def test_a_folder_of_the_users_own_stays_as_it_was(workplace: Path) -> None:
    own = workplace / "own"
    own.mkdir()
    for name in ("", "notes.txt", "result.json", "run.toml"):
        if name:
            (own / name).touch()
        before = set(own.iterdir())
        with pytest.raises(DeviceError):
            refuse(own)
        assert set(own.iterdir()) == before


def test_a_run_that_began_a_stage_stays(workplace: Path) -> None:
    def fail() -> None:
        raise DeviceError("the board went away")

    for _ in range(2):
        with pytest.raises(DeviceError), RunFolder.open(workplace / "run", SETTINGS, ignore) as folder:
            folder.stage("profile", fail)
        assert (workplace / "run" / "run.toml").exists()
        assert (workplace / "run" / "journal.jsonl").exists()


def test_the_list_of_runs_knows_none_that_was_refused(hw: Hw, workplace: Path) -> None:
    with RunFolder.open(workplace / "runs" / "good", SETTINGS, ignore) as folder:
        folder.stage("profile", lambda: None)
    (workplace / "runs" / "refused").mkdir()
    SETTINGS.write(workplace / "runs" / "refused" / "run.toml")
    assert hw("explain", "god").err == "error: 'god' is not a run folder\nhint: runs in runs: good\n"
