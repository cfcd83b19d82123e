"""The study of a search on the disk: Optuna's own tools open it, torn files are mended, foreign ones refused."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from hwprune.core.errors import RunError, UsageError
from hwprune.methods import metapruning
from hwprune.methods._metapruning_study import SPEC, mend_journal, open_storage, open_study, quiet

OURS = {"space": "abc", "target_ms": 2.0, "seed": 0}


def opened(path: Path, **changes: object) -> optuna.Study:
    return open_study(open_storage(path, ""), {**OURS, **changes}, RandomSampler(seed=0), str(path))


def evaluated(study: optuna.Study, count: int) -> None:
    with quiet():
        for _ in range(count):
            trial = study.ask()
            study.tell(trial, float(trial.suggest_int("000 conv1", 0, 9)))


def test_stock_optuna_opens_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    evaluated(opened(path), 3)
    program = (
        "import optuna, sys\n"
        "from optuna.storages.journal import JournalFileBackend, JournalStorage\n"
        "storage = JournalStorage(JournalFileBackend(sys.argv[1]))\n"
        "study = optuna.load_study(study_name=None, storage=storage)\n"
        "print(study.study_name, len(study.trials), study.best_value, study.user_attrs['hwprune']['space'])\n"
        "assert not any(name.startswith('hwprune') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    best = opened(path).best_value
    assert done.stdout.split() == ["metapruning", "3", str(best), "abc"]


def test_a_database_opens_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = open_study(open_storage(None, url), OURS, RandomSampler(seed=0), url)
    evaluated(study, 2)
    assert len(optuna.load_study(study_name="metapruning", storage=url).trials) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "xyz"}, r"another search \(space: abc there, xyz now\)"),
        ({"target_ms": 2.5}, r"another search \(target_ms: 2.0 there, 2.5 now\)"),
        ({"seed": 1, "space": "x"}, r"space: abc there, x now; seed: 0 there, 1 now"),
    ],
)
def test_a_study_of_another_space_is_refused_and_stays(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "study.log"
    evaluated(opened(path), 2)
    before = path.read_bytes()
    with pytest.raises(RunError, match=message) as caught:
        opened(path, **changes)
    assert "choose another run folder" in caught.value.hint
    assert path.read_bytes() == before


def test_a_study_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    with quiet():
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(storage=storage, study_name="metapruning")
        study.tell(study.ask(), 1.0)
    with pytest.raises(RunError, match=r"holds a study that is not of hwprune"):
        opened(path)


def test_a_target_that_differs_by_rounding_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    opened(path)
    assert opened(path, target_ms=2.0 * (1 + 1e-12)).user_attrs[SPEC]["target_ms"] == 2.0
    with pytest.raises(RunError, match=r"another search \(target_ms: 2.0 there, 2.0001 now\)"):
        opened(path, target_ms=2.0001)


@pytest.mark.parametrize(
    "url", ["studies.db", "nosuch://host/db", "mysql+nosuch://me:secret@host/db", "sqlite:////nosuch/folder/x.db"]
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match=r"^storage '.*' cannot be opened: ") as caught:
        open_storage(None, url)
    assert url.replace("secret", "***") in caught.value.message
    assert "secret" not in caught.value.message
    assert "sqlite:///FILE" in caught.value.hint


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match=r"x\.db' cannot be opened: .*not a database"):
        open_storage(None, f"sqlite:///{tmp_path}/x.db")


def test_what_was_running_when_the_process_died_is_failed(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    study = opened(path)
    evaluated(study, 1)
    study.ask()
    states = [trial.state for trial in opened(path).trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL]


@pytest.mark.parametrize("torn", [b'{"op_code":4,"work', b"\x00\x00"])
def test_a_torn_last_line_is_cut_off_and_kept(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "study.log"
    evaluated(opened(path), 2)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(opened(path).trials) == 2
    assert path.read_bytes().startswith(whole)
    assert (tmp_path / "study.log.torn").read_bytes() == torn
    evaluated(opened(path), 1)
    assert len(opened(path).trials) == 3


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    evaluated(opened(path), 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{broken\n", *lines[2:]]))
    with pytest.raises(RunError, match=r"study\.log is damaged and cannot be read") as caught:
        opened(path)
    assert "the search then begins anew" in caught.value.hint


def test_the_lock_of_a_dead_process_is_removed_and_a_living_one_respected(tmp_path: Path) -> None:
    path, lock = tmp_path / "study.log", tmp_path / "study.log.lock"
    evaluated(opened(path), 1)
    lock.symlink_to(path)
    mend_journal(path)
    assert lock.is_symlink()
    os.utime(lock, (time.time() - 60,) * 2, follow_symlinks=False)
    mend_journal(path)
    assert not lock.is_symlink()


def test_optuna_says_nothing_and_its_settings_stay(capsys: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    with quiet():
        study = optuna.create_study()
        study.tell(study.ask(), 1.0)
        warnings.warn("new", optuna.exceptions.ExperimentalWarning, stacklevel=1)
    assert optuna.logging.get_verbosity() == before
    assert capsys.readouterr().err == ""


def test_the_method_imports_optuna_only_when_it_searches() -> None:
    folder = Path(metapruning.__file__).parent
    late = {"_metapruning_sampler", "_metapruning_search", "_metapruning_study"}
    for path in (folder / "metapruning.py", *folder.glob("_metapruning_*.py")):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
        loads = any(name.split(".")[0] == "optuna" or name.rpartition(".")[2] in late for name in names)
        assert loads == (path.stem in late)
