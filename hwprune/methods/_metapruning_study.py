"""The Optuna study of a search: where it is kept, whether it is ours, and how Optuna is kept quiet. Import it late.

`optuna-dashboard RUN/study.log` shows it; `optuna.load_study` opens it without hwprune.
"""

from __future__ import annotations

import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from hwprune.core.errors import RunError, UsageError

STUDY_NAME = "metapruning"
SPEC = "hwprune"
NETWORK = "hwprune:network"
# A target is computed anew on every resume; anything but a rounding error is another budget.
_SAME_TARGET = 1e-9
_STALE_LOCK_S = 5.0


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its progress on stderr and without warnings about experimental features."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def open_storage(path: Path | None, url: str) -> BaseStorage:
    """The storage behind `url` when there is one, else the journal file `path`, else memory.

    Raises `UsageError` for a URL that cannot be opened, `RunError` for a journal with a damaged line in its middle.
    """
    if url:
        return _open_url(url)
    if path is None:
        return InMemoryStorage()
    path.parent.mkdir(parents=True, exist_ok=True)
    mend_journal(path)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except ValueError as error:
        raise RunError(
            f"{path} is damaged and cannot be read: {error}", hint="move it away: the search then begins anew"
        ) from error


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    return re.sub(r"(//[^/@]*:)[^/]*@", r"\1***@", url)


def _open_url(url: str) -> BaseStorage:
    try:
        return get_storage(url)
    # What Optuna raises for a bad scheme or an old schema, and what SQLAlchemy and a missing driver raise through it.
    except (ImportError, OSError, RuntimeError, SQLAlchemyError, ValueError, optuna.exceptions.OptunaError) as error:
        reason = str(error).partition("\n")[0].replace(url, without_password(url))
        raise UsageError(
            f"storage '{without_password(url)}' cannot be opened: {reason}",
            hint="a storage is a database URL such as sqlite:///FILE; without one the candidates go to RUN/study.log",
        ) from error


def mend_journal(path: Path) -> None:
    """Make a journal readable after a kill or a full disk: Optuna refuses a file whose last line is torn.

    The torn bytes go to `PATH.torn`; a lock that a dead process left would make Optuna wait for half a minute.
    """
    lock = path.with_name(f"{path.name}.lock")
    if lock.is_symlink() and time.time() - lock.lstat().st_mtime > _STALE_LOCK_S:
        lock.unlink()
    if not path.exists():
        return
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        whole = _end_of_last_line(path)
        if whole < size:
            file.seek(whole)
            with open(path.with_name(f"{path.name}.torn"), "ab") as torn:
                torn.write(file.read())
            file.truncate(whole)


def _end_of_last_line(path: Path) -> int:
    end = 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
    return end


def open_study(
    storage: BaseStorage, spec: Mapping[str, Any], sampler: BaseSampler, where: str, name: str = STUDY_NAME
) -> optuna.Study:
    """The study of this search, new or continued; what a killed process was evaluating is failed and made again.

    Raises `RunError` when the study belongs to another search, naming what differs.
    """
    with quiet():
        if name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        else:
            study = optuna.create_study(study_name=name, storage=storage, sampler=sampler, direction="maximize")
        kept = study.user_attrs.get(SPEC)
        if kept is None and study.get_trials(deepcopy=False):
            raise RunError(f"{where} holds a study that is not of hwprune", hint="choose another run folder")
        if kept is None:
            study.set_user_attr(SPEC, dict(spec))
        else:
            _check_same(kept, spec, where)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
    return study


def same_network(study: optuna.Study, digest: str) -> None:
    """Raise `RunError` when the study's candidates were scored with other generated weights."""
    kept = study.user_attrs.get(NETWORK)
    if kept is None:
        study.set_user_attr(NETWORK, digest)
    elif kept != digest:
        raise RunError(
            f"the candidates so far were scored by another PruningNet ({kept} there, {digest} now)",
            hint="its checkpoint is gone or was trained otherwise: choose another run folder",
        )


def _check_same(kept: Mapping[str, Any], spec: Mapping[str, Any], where: str) -> None:
    differing = [
        f"{name}: {kept.get(name)} there, {value} now"
        for name, value in spec.items()
        if kept.get(name) != value and not (name == "target_ms" and _same_target(kept.get(name, math.nan), value))
    ]
    if differing:
        raise RunError(
            f"the study in {where} belongs to another search ({'; '.join(differing)})",
            hint="go back to the old settings, or choose another run folder",
        )


def _same_target(kept: float, wanted: float) -> bool:
    return math.isclose(kept, wanted, rel_tol=_SAME_TARGET)
