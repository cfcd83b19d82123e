"""The process on a device that the host talks to: no runtime in it, so nothing that a runtime does can end it.

It takes jobs one at a time, gives them to a worker, watches it, and answers. A worker that dies gets a successor and
its job a second try; a job that kills two is poison. When the host goes away, or is not heard for half a minute, the
job in hand is finished and its result kept for the host's return. Only the monotonic clock is looked at, and silence is
counted in slices of waiting, so that neither a clock that jumps nor a process that was stopped for a while looks like a
dead worker or host.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from hwprune.core.errors import DeviceError
from hwprune.core.target import Fingerprint
from hwprune.devices.agent.blobs import BlobStore
from hwprune.devices.agent.framing import PROTOCOL, FrameError, read_frame
from hwprune.devices.agent.jobs import Job
from hwprune.devices.agent.link import SLICE_S, HostLink
from hwprune.devices.agent.processes import WorkerProcess, WorkerStuck
from hwprune.devices.agent.spool import Lease, Spool, valid_session

HEARTBEAT_SLICES = 2
RECYCLE_BUILDS = 200
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """What changes when the machine is started again; "" where the system does not tell."""
    try:
        return BOOT_ID.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


class Supervisor:
    """One connection of one host. `run` returns the exit code."""

    def __init__(self, source: BinaryIO, out: int, folder: Path, agent: str) -> None:
        self._host = HostLink(source, out)
        self._folder = folder
        self._agent = agent
        self._events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._blobs = BlobStore()
        self._lease = Lease(folder)
        self._spool: Spool | None = None
        self._session = ""
        self._seq = 0
        self._known_seq = 0
        self._idle_slices = 0
        self._waiting = False
        self._alone = False
        self._over = False
        self._worker: WorkerProcess | None = None
        self._worker_builds = 0
        self._opening: Job | None = None
        self._reference: list[tuple[dict[str, Any], bytes]] = []
        self._fingerprint: dict[str, Any] | None = None
        self._job: Job | None = None

    def run(self) -> int:
        """Until the host says bye, or has gone and the job in hand is finished."""
        threading.Thread(target=self._read_host, daemon=True).start()
        try:
            while not self._over:
                begin = time.monotonic()
                try:
                    self._step()
                except WorkerStuck as stuck:
                    self._on_stuck(stuck)
                if self._host.silent(min(time.monotonic() - begin, SLICE_S)):
                    self._on_gone()
        finally:
            if self._worker is not None:
                with contextlib.suppress(WorkerStuck):
                    self._worker.kill()
        return 0

    def _step(self) -> None:
        """Handle the next event, or a slice without one."""
        try:
            kind, *rest = self._events.get(timeout=SLICE_S)
        except queue.Empty:
            self._tick()
        else:
            self._handle(kind, rest)

    def _handle(self, kind: str, details: list[Any]) -> None:
        handlers: dict[str, Any] = {
            "frame": self._on_frame,
            "refused": self._on_refused,
            "gone": self._on_gone,
            "worker": self._on_worker,
        }
        handlers[kind](*details)

    def _read_host(self) -> None:
        while True:
            try:
                frame = read_frame(self._host)
            except FrameError as error:
                self._events.put(("refused", str(error)))
                return
            except OSError:
                frame = None
            if frame is None:
                self._events.put(("gone",))
                return
            if frame[0].get("type") != "alive":  # which has done its work by being heard
                self._events.put(("frame", *frame))

    def _say(self, message: dict[str, Any]) -> None:
        """Send with the next number; a host that is not there misses it."""
        self._seq += 1
        self._send({"seq": self._seq, **message})

    def _send(self, message: dict[str, Any]) -> None:
        if self._alone:
            return
        try:
            self._host.send(message)
        except OSError:
            self._on_gone()

    def _tick(self) -> None:
        """One slice of silence has passed."""
        self._idle_slices += 1
        if self._waiting:
            self._begin_session()
        if self._idle_slices % HEARTBEAT_SLICES == 0:
            self._send({"seq": 0, "type": "heartbeat"})
        if self._job is not None and self._job.overdue():
            self._on_stalled(self._job)

    def _on_refused(self, reason: str) -> None:
        """Say what is wrong with a frame and hang up; the host may come back and send it again."""
        self._send({"seq": 0, "type": "refused", "message": reason})
        self._on_gone()

    def _on_gone(self) -> None:
        """The host went away: finish the job in hand for its return, then go."""
        self._alone = True
        if self._job is None or self._job.kind == "open":
            self._over = True

    def _on_frame(self, message: dict[str, Any], blob: bytes) -> None:
        """What the host asks for; a type that is not known is passed over, as a later host may send it."""
        if self._alone:
            return  # it was not heard for too long, and has to come back on a new connection
        try:
            if message["type"] == "hello":
                self._greet(message)
            elif message["type"] == "blob":
                self._blobs.put(message, blob)
            elif message["type"] == "job":
                self._take(Job(message))
            elif message["type"] == "cancel":
                self._cancel(message["job"])
            elif message["type"] == "ping":
                self._send({"seq": 0, "type": "pong"})
            elif message["type"] == "bye":
                self._leave(message["acknowledged"])
        except (KeyError, TypeError) as error:
            self._on_refused(f"a message of the host lacks something: {error}")

    def _cancel(self, name: str) -> None:
        if self._job is not None and self._job.name == name:
            self._end_worker(at_once=True)
            self._fail(self._job, self._job.stage, "DeviceError", "the job was cancelled")

    def _greet(self, message: dict[str, Any]) -> None:
        if message.get("protocol") != PROTOCOL or not valid_session(message.get("session")):
            self._on_refused(f"protocol {PROTOCOL} and a session name expected")
            return
        self._session = message["session"]
        self._known_seq = message["last_seq"]
        self._begin_session()

    def _begin_session(self) -> None:
        """Say hello once the device is ours. The session's former supervisor may still be finishing its job."""
        if not self._lease.take(self._session):
            session, process = self._lease.holder()
            if session not in (self._session, ""):
                self._send({"seq": 0, "type": "busy", "process": process})
                self._over = True
            elif not self._waiting:
                self._waiting = True
                self._send({"seq": 0, "type": "waiting", "process": process})
            return
        self._waiting = False
        self._spool = Spool(self._folder, self._session)
        missing = self._spool.after(self._known_seq)
        self._send(
            {
                "seq": 0,
                "type": "hello",
                "protocol": PROTOCOL,
                "boot_id": boot_id(),
                "python": platform.python_version(),
                "machine": platform.machine(),
                "process": os.getpid(),
                "kept": [result["job"] for result in missing],
            }
        )
        for result in missing:
            self._send(result)
        self._seq = max(self._known_seq, self._spool.last_seq)

    def _take(self, job: Job) -> None:
        """Answer from what is known, else give the job to the worker."""
        if self._spool is None:
            self._on_refused("no hello came before the first job")
            return
        self._spool.acknowledge(job.acknowledged)
        known = self._spool.result(job.name)
        missing = self._blobs.missing(job.blobs)
        if known is not None:
            self._say({name: value for name, value in known.items() if name != "seq"})
        elif self._job is not None:
            self._on_refused(f"job {self._job.name[:12]} is still running")
        elif self._spool.poisonous(job.content):
            self._fail(job, "poison", "WorkerDied", "it has killed two workers in this session")
        elif missing:
            self._say({"type": "need", "job": job.name, "blobs": missing})
        else:
            self._say({"type": "accepted", "job": job.name})
            self._start(job)

    def _start(self, job: Job) -> None:
        self._job = job
        if job.kind == "open":
            self._end_worker()
            self._opening, self._fingerprint = job, None
            self._reference = [self._blobs.frame(name) for name in job.blobs]
        elif self._worker is not None and self._worker_builds >= RECYCLE_BUILDS:
            self._end_worker()
        if self._opening is None:
            self._fail(job, "open", "DeviceError", "no board was opened before this job")
        elif self._worker is None:
            self._worker = WorkerProcess(self._agent, lambda worker, said: self._events.put(("worker", worker, said)))
            self._worker_builds = 0
            job.opening = True
            order = {"kind": "open", "arguments": self._opening.with_reference(job)}
            self._order(self._worker, order, self._reference)
        else:
            self._give(self._worker, job)

    def _give(self, worker: WorkerProcess, job: Job) -> None:
        job.opening = False
        self._order(
            worker, {"kind": job.kind, "arguments": job.arguments}, [self._blobs.frame(name) for name in job.blobs]
        )

    def _order(self, worker: WorkerProcess, order: dict[str, Any], blobs: list[tuple[dict[str, Any], bytes]]) -> None:
        for header, data in blobs:
            worker.send(header, data)
        worker.send({"type": "job", **order})

    def _on_worker(self, worker: WorkerProcess, said: dict[str, Any] | None) -> None:
        job = self._job
        if worker is not self._worker:
            return  # one that was replaced
        if said is None:
            self._worker = None
            if job is not None:
                self._on_crash(job, worker.obituary())
            return
        if job is None:
            return
        job.heard(said)
        self._worker_builds += said["type"] == "stage" and said["stage"] == "build"
        if said["type"] in ("stage", "built", "round"):
            self._say({**said, "job": job.name})
        elif said["type"] == "error":
            self._finish(job, {**said, "stage": job.stage})
        elif job.opening:
            self._on_opened(worker, job, said["value"])
        else:
            self._finish(job, said)

    def _on_opened(self, worker: WorkerProcess, job: Job, value: dict[str, Any]) -> None:
        if job.kind == "open":
            self._fingerprint = value["fingerprint"]
            self._finish(job, {"type": "result", "value": value})
            return
        before = Fingerprint.from_json(self._fingerprint or value["fingerprint"])
        changed = before.differences(Fingerprint.from_json(value["fingerprint"]))
        if changed:
            what = "; ".join(changed)
            self._fail(job, "open", "DeviceError", f"the device has changed since the session began: {what}")
        else:
            self._give(worker, job)

    def _finish(self, job: Job, message: dict[str, Any]) -> None:
        """Keep the answer, then send it."""
        self._job = None
        self._seq += 1
        answer = {"seq": self._seq, **message, "job": job.name}
        if job.kind != "open" and self._spool is not None:
            try:
                self._spool.add(answer)
            except DeviceError as error:
                failed = _error("spool", "DeviceError", error.message, error.hint)
                answer = {"seq": self._seq, **failed, "job": job.name}
        self._send(answer)
        if self._alone:
            self._over = True

    def _fail(self, job: Job, stage: str, kind: str, message: str) -> None:
        self._finish(job, _error(stage, kind, message))

    def _on_crash(self, job: Job, how: str) -> None:
        """A first death may be bad luck, such as somebody else's hunger for memory; a second one is the job's."""
        assert self._spool is not None
        self._spool.crash(job.content)
        if self._spool.poisonous(job.content):
            self._fail(job, job.stage, "WorkerDied", f"two workers died at it; the last one {how}")
            return
        self._say({"type": "crash", "job": job.name, "stage": job.stage, "message": f"the worker {how}"})
        self._start(job.again())

    def _on_stalled(self, job: Job) -> None:
        """Nothing was heard for as long as the stage may take: a second try would take as long again."""
        assert self._spool is not None
        self._end_worker(at_once=True)
        self._spool.crash(job.content, count=2)
        what = f"nothing was heard from its worker for {job.patience_s:.0f} s"
        if job.stage != "measure":
            what += "; for longer builds set build_s in [connection] of the device file"
        self._fail(job, job.stage, "WorkerDied", what)

    def _on_stuck(self, stuck: WorkerStuck) -> None:
        """Say so and go: nothing can be measured beside such a process, but the next session may find it gone."""
        self._worker = None
        if self._job is not None:
            failed = _error(self._job.stage, "DeviceError", str(stuck), "restart the device")
            self._finish(self._job, failed)
        self._over = True

    def _end_worker(self, *, at_once: bool = False) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill() if at_once else worker.end()

    def _leave(self, acknowledged: int) -> None:
        if self._spool is not None:
            self._spool.acknowledge(acknowledged)
            self._spool.close()
        self._end_worker(at_once=self._job is not None)
        self._say({"type": "bye"})
        self._over = True


def _error(stage: str, kind: str, message: str, hint: str = "") -> dict[str, Any]:
    return {"type": "error", "stage": stage, "class": kind, "message": message, "hint": hint}


def main(source: BinaryIO, out: int, folder: str, agent: str) -> int:
    """Serve the host at the other end of standard input and of `out`; the exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return Supervisor(source, out, Path(folder), agent).run()
    except Exception:  # noqa: BLE001 - whatever it is, the interpreter must not end by itself: see the bootstrap
        traceback.print_exc()
        return 1
