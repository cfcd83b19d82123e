"""The folder of one run: its settings, its journal, its artefacts. The same command continues it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hwprune.core.errors import DeviceError, UsageError
from hwprune.core.events import Caution, Event, Note, OnEvent, Progress, StageDone, StageStarted
from hwprune.core.files import Journal, atomic_write_text, lock
from hwprune.search.settings import SearchSettings

T = TypeVar("T")
RUNS = Path("runs")
JOURNAL = "journal.jsonl"
INTERRUPTED = "StageInterrupted"  # a record of the journal, beside the events
DATA = "data.json"  # the fingerprint of what the run trains on
BEFORE_A_STAGE = (".lock", "run.toml", "run_id", DATA, JOURNAL, "log.txt")  # all that a run writes that began no stage
ONNX, ONNX_FP32 = "model.onnx", "model_fp32.onnx"  # what ships; what it was made from, where that is another file


class RunFolder:
    """A run on the disk. Every event goes into `journal.jsonl`; a stage is done when its `StageDone` is there.

    `run_id` tells it from other runs in folders of that name; `cautions` are the texts of all it cautioned against.
    """

    def __init__(self, path: Path, settings: SearchSettings, on_event: OnEvent) -> None:
        self.path = path
        self.settings = settings
        self.journal = Journal(path / JOURNAL)
        self._listener = on_event
        self._started = time.monotonic()
        self.run_id = _run_id(path)
        records, damaged = self.journal.read()
        self.cautions = {record["text"]: None for record in records if record.get("event") == "Caution"}
        self._done = {record["stage"]: record for record in records if record.get("event") == "StageDone"}
        self._interrupted_s = _interrupted_seconds(records)
        self._elapsed_before = max((float(record.get("time_s") or 0.0) for record in records), default=0.0)
        if damaged:
            self.emit(Note(f"{damaged} damaged line(s) in {self.journal.path} were skipped"))

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, settings: SearchSettings, on_event: OnEvent) -> Iterator[RunFolder]:
        """Lock the folder for this process and check that it holds this run or none.

        A run of which no stage has ended is none: its settings are replaced. One that ends by an error before it began
        a stage leaves nothing behind. Raises `RunError` when another process has the folder or its run has other
        settings.
        """
        created = [folder for folder in (path, *path.parents) if not folder.exists()]
        before = set() if path in created else set(path.iterdir())
        with lock(path):
            kept = path / "run.toml"
            records, _ = Journal(path / JOURNAL).read()
            if kept.exists() and any(record.get("event") == "StageDone" for record in records):
                settings.check_same(SearchSettings.read(kept), path)
            else:
                settings.write(kept)
            try:
                yield cls(path, settings, on_event)
            except BaseException:
                _clear_refused(path, before, created)
                raise

    @property
    def elapsed_s(self) -> float:
        """Seconds this run has taken, earlier sessions included."""
        return self._elapsed_before + time.monotonic() - self._started

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every finished stage."""
        return {stage: float(record["seconds"]) for stage, record in self._done.items()}

    def is_done(self, stage: str) -> bool:
        """Whether the journal says that this stage ended."""
        return stage in self._done

    def emit(self, event: Event) -> None:
        """Record an event and pass it on. Progress is passed on but not kept: it says nothing afterwards."""
        if isinstance(event, Caution):
            self.cautions[event.text] = None
        if not isinstance(event, Progress):
            record: dict[str, Any] = {"event": type(event).__name__, "time_s": round(self.elapsed_s, 3)}
            record.update(dataclasses.asdict(event))
            self.journal.append(record)
            with open(self.path / "log.txt", "a", encoding="utf-8") as log:
                log.write(f"{self.elapsed_s:9.1f} s  {_sentence(record)}\n")
        self._listener(event)

    def stage(self, name: str, work: Callable[[], T], load: Callable[[], T] | None = None) -> T:
        """Do a stage once: `work` makes and saves its artefact; in a resumed run `load` reads it back instead.

        Without `load` the work is cheap or resumes by itself, and is repeated.
        """
        if load is not None and self.is_done(name):
            return load()
        started = time.monotonic()
        self.emit(StageStarted(name))
        try:
            result = work()
        except BaseException:
            self._keep_seconds(name, time.monotonic() - started)
            raise
        before_s = self.seconds.get(name, 0.0) + self._interrupted_s.pop(name, 0.0)
        done = StageDone(name, round(time.monotonic() - started + before_s, 3))
        self.emit(done)
        self._done[name] = dataclasses.asdict(done)
        return result

    def _keep_seconds(self, stage: str, seconds: float) -> None:
        """Note what an interrupted stage has taken; the error that ended it is the one to tell."""
        record = {
            "event": INTERRUPTED,
            "time_s": round(self.elapsed_s, 3),
            "stage": stage,
            "seconds": round(seconds, 3),
        }
        with contextlib.suppress(DeviceError):
            self.journal.append(record)

    def checkpoint(self, name: str) -> Path:
        """Where a training of this run saves its state."""
        return self.path / "checkpoints" / name


def fp32_onnx(folder: Path) -> Path:
    """The pruned network of a run as an fp32 file, which every other precision is made from."""
    return folder / ONNX_FP32 if (folder / ONNX_FP32).exists() else folder / ONNX


def find_run(run: str | Path, root: Path = RUNS) -> Path:
    """The folder of a run named by its path, its name under `root`, or `last` (the one begun or continued last)."""
    # A search that was refused has no journal, in the folders that such ones once left behind.
    begun = sorted(root.glob(f"*/{JOURNAL}"), key=lambda path: path.stat().st_mtime)
    if str(run) == "last":
        if not begun:
            raise UsageError(f"there is no run in {root} yet", hint="hwprune search --latency 60%")
        return begun[-1].parent
    for folder in (Path(run), root / run):
        if (folder / "run.toml").exists():
            return folder
    known = ", ".join(sorted(path.parent.name for path in begun)) or "none"
    raise UsageError(f"'{run}' is not a run folder", hint=f"runs in {root}: {known}")


def _interrupted_seconds(records: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Seconds of the interrupted attempts at each stage since it last ended."""
    found: dict[str, float] = {}
    for record in records:
        if record.get("event") == INTERRUPTED:
            found[record["stage"]] = found.get(record["stage"], 0.0) + float(record["seconds"])
        elif record.get("event") == "StageDone":
            found.pop(record["stage"], None)
    return found


def _clear_refused(path: Path, before: Collection[Path], created: Iterable[Path]) -> None:
    """Remove what a run that began no stage has added to what was there `before`, and the folders it `created`."""
    records, _ = Journal(path / JOURNAL).read()
    if any(record.get("event") == "StageStarted" for record in records):
        return
    for file in {path / name for name in BEFORE_A_STAGE} - set(before):
        file.unlink(missing_ok=True)
    for folder in created:
        with contextlib.suppress(OSError):  # somebody else has put something there meanwhile
            folder.rmdir()


def _run_id(folder: Path) -> str:
    """What was drawn for this run when it began."""
    path = folder / "run_id"
    if not path.exists():
        atomic_write_text(path, f"{uuid.uuid4().hex[:12]}\n")
    return path.read_text(encoding="utf-8").strip()


def _sentence(record: dict[str, Any]) -> str:
    fields = (f"{key}={value}" for key, value in record.items() if key not in ("event", "time_s"))
    return f"{record['event']} {' '.join(fields)}"
