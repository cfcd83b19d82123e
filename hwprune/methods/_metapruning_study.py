"""The Optuna study of a search: where it is kept, whether it is ours, and how Optuna is kept quiet. Import it late.

`optuna-dashboard RUN/study.log` shows it; `optuna.load_study` opens it without hwprune.
"""

from __future__ import annotations

import os
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

from hwprune.core.errors import RunError

STUDY_NAME = "metapruning"
SPEC = "hwprune"
NETWORK = "hwprune:network"
# A measured dense latency differs a little each time, and so does a budget that is a fraction of it.
_SAME_TARGET = 0.05
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

    Raises `RunError` for a journal with a damaged line in its middle.
    """
    if url:
        return get_storage(url)
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


def open_study(storage: BaseStorage, spec: Mapping[str, Any], sampler: BaseSampler, where: str) -> optuna.Study:
    """The study of this search, new or continued; what a killed process was evaluating is failed and made again.

    Raises `RunError` when the study belongs to another search, naming what differs.
    """
    with quiet():
        if STUDY_NAME in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=STUDY_NAME, storage=storage, sampler=sampler)
        else:
            study = optuna.create_study(study_name=STUDY_NAME, storage=storage, sampler=sampler, direction="maximize")
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


def kept_target_ms(storage: BaseStorage, target_ms: float) -> float:
    """The target the study in `storage` was begun with, when there is one and it is nearly the same."""
    for summary in optuna.get_all_study_summaries(storage):
        if summary.study_name == STUDY_NAME:
            kept = float(summary.user_attrs.get(SPEC, {}).get("target_ms", target_ms))
            return kept if _same_target(kept, target_ms) else target_ms
    return target_ms


def _same_target(kept: float, wanted: float) -> bool:
    return abs(kept / wanted - 1) <= _SAME_TARGET


def _check_same(kept: Mapping[str, Any], spec: Mapping[str, Any], where: str) -> None:
    differing = [
        f"{name}: {kept.get(name)} there, {value} now"
        for name, value in spec.items()
        if kept.get(name) != value and not (name == "target_ms" and _same_target(float(kept.get(name, 0)), value))
    ]
    if differing:
        raise RunError(
            f"the study in {where} belongs to another search ({'; '.join(differing)})",
            hint="go back to the old settings, or choose another run folder",
        )
