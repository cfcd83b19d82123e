"""Work shared out among several open devices, one thread each; what a lost device had in hand goes to another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

from hwprune.core.errors import DeviceError
from hwprune.core.events import Caution, OnEvent

if TYPE_CHECKING:
    from hwprune.devices import AbstractBoard

T = TypeVar("T")


def share_out(
    items: Sequence[T],
    boards: Sequence[AbstractBoard],
    work: Callable[[AbstractBoard, T], None],
    on_event: OnEvent,
) -> None:
    """Call `work(board, item)` once for every item, on whichever board is free.

    A board that raises `DeviceError` gets nothing more, and its item goes back to the queue; the error is raised when
    no board is left. Any other error ends the work: what is in hand is finished, then it is raised.
    """
    if len(boards) == 1:
        for item in items:
            work(boards[0], item)
        return
    _Crew(items, work, on_event).run(boards)


class _Crew(Generic[T]):
    """The queue, and which boards still serve."""

    def __init__(self, items: Sequence[T], work: Callable[[AbstractBoard, T], None], on_event: OnEvent) -> None:
        self._waiting = deque(items)
        self._work = work
        self._on_event = on_event
        self._lock = threading.Lock()
        self._ending = False
        self._lost: dict[int, DeviceError] = {}

    def run(self, boards: Sequence[AbstractBoard]) -> None:
        """Until the queue is empty. A board may be lost when the others have gone home, so that takes several turns."""
        while self._waiting:
            serving = [board for board in boards if id(board) not in self._lost]
            if not serving:
                raise next(iter(self._lost.values()))
            with ThreadPoolExecutor(len(serving), thread_name_prefix="board") as threads:
                running = [threads.submit(self._serve, board) for board in serving]
            for done in running:
                done.result()

    def _serve(self, board: AbstractBoard) -> None:
        while True:
            with self._lock:
                if self._ending or not self._waiting:
                    return
                item = self._waiting.popleft()
            finished = False
            try:
                self._work(board, item)
                finished = True
            except DeviceError as error:
                self._lose(board, item, error)
                return
            finally:
                self._ending = self._ending or not (finished or id(board) in self._lost)

    def _lose(self, board: AbstractBoard, item: T, error: DeviceError) -> None:
        with self._lock:
            self._waiting.appendleft(item)
            self._lost[id(board)] = error
            self._on_event(Caution(f"{board.label()} is lost: {error.message}", "the other devices go on without it"))
