"""The way to the host, watched: a host that says nothing, or takes nothing, for long enough is gone.

A connection whose other end vanished without a word (a cable pulled, a laptop at another address, a host without
power) stays open for a quarter of an hour as far as TCP is concerned. Therefore the host sends something every few
seconds. Every byte counts as a sign of life, so that a large model on a slow line is none of silence.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from typing import Any, BinaryIO

from hwprune.devices.agent.framing import encode_line

SLICE_S = 1.0
HOST_S = 30.0  # six signs of life
PIECE = 4096  # what a pipe that is ready takes without blocking


class HostLink:
    """What comes from the host, as a stream to read frames from, and the lines that go to it."""

    def __init__(self, source: BinaryIO, out: int) -> None:
        self._source = source
        self._out = out
        self._heard = 0
        self._noticed = 0
        self._silence_s = 0.0

    def readline(self, limit: int) -> bytes:
        """The next line, or its first `limit` bytes."""
        line = self._source.readline(limit)
        self._heard += 1
        return line

    def read(self, size: int) -> bytes:
        """So many bytes, fewer at the end of the stream."""
        parts = []
        while size > 0:
            part = self._source.read1(min(size, 1 << 16))  # type: ignore[attr-defined]
            if not part:
                break
            self._heard += 1
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def silent(self, passed_s: float) -> bool:
        """Whether the host has said nothing for too long, now that `passed_s` more have passed.

        The caller counts a slice at most at a time, whatever the clock says: this process may have been stopped.
        """
        if self._heard != self._noticed:
            self._noticed, self._silence_s = self._heard, 0.0
        else:
            self._silence_s += passed_s
        return self._silence_s > HOST_S

    def send(self, message: Mapping[str, Any]) -> None:
        """One line. Raises `OSError` where the host has gone or takes nothing any more."""
        view = memoryview(encode_line(message))
        waited_s = 0.0
        while view:
            if select.select([], [self._out], [], SLICE_S)[1]:
                view = view[os.write(self._out, view[:PIECE]) :]
                waited_s = 0.0
                continue
            waited_s += SLICE_S
            if waited_s > HOST_S:
                raise TimeoutError("the host takes nothing any more")
