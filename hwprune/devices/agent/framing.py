"""The bytes between host and device: frames with a hash on the way down, JSON lines with a checksum on the way up.

Down: `HWP1 <json bytes> <blob bytes> <sha256 of both>`, LF, then a JSON object and a blob. Lengths are checked before
anything is read or allocated. Up: one JSON object a line, whose last key `crc` is the CRC-32 of the rest.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any
from typing import Protocol as TypingProtocol

PROTOCOL = 2
HEADER_LIMIT = 160
MESSAGE_LIMIT = 1 << 20
BLOB_LIMIT = 64 << 20  # as sent, compressed
UNPACKED_LIMIT = 512 << 20
LINE_LIMIT = 64 << 20

_HEADER = re.compile(rb"HWP1 ([0-9]{1,19}) ([0-9]{1,19}) ([0-9a-f]{64})\n\Z")
_LINE = re.compile(rb'(.*),"crc":"([0-9a-f]{8})"\}\n\Z', re.DOTALL)


class FrameError(Exception):
    """Bytes that are not what they say they are. Whoever reads them hangs up."""


class Source(TypingProtocol):
    """What frames are read from."""

    def readline(self, limit: int, /) -> bytes: ...

    def read(self, size: int, /) -> bytes: ...


def encode_frame(message: Mapping[str, Any], blob: bytes = b"") -> bytes:
    """One frame. Raises `FrameError` where the reader would refuse it for its size."""
    body = json.dumps(message, separators=(",", ":")).encode()
    _check_lengths(len(body), len(blob))
    digest = hashlib.sha256(body + blob).hexdigest()
    return b"HWP1 %d %d %s\n%s%s" % (len(body), len(blob), digest.encode(), body, blob)


def read_frame(source: Source) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None where the stream ends. Raises `FrameError` for a lying length, a wrong hash, no JSON."""
    header = source.readline(HEADER_LIMIT)
    if not header:
        return None
    match = _HEADER.match(header)
    if match is None:
        raise FrameError(f"no frame begins with {header[:40]!r}")
    length, blob_length = int(match.group(1)), int(match.group(2))
    _check_lengths(length, blob_length)
    body = source.read(length)
    blob = source.read(blob_length) if blob_length else b""
    if len(body) < length or len(blob) < blob_length:
        return None
    if hashlib.sha256(body + blob).hexdigest().encode() != match.group(3):
        raise FrameError("the hash of a frame is wrong")
    try:
        message = json.loads(body)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise FrameError("a frame holds no JSON object")
    return message, blob


def _check_lengths(length: int, blob_length: int) -> None:
    if not 2 <= length <= MESSAGE_LIMIT:
        raise FrameError(f"a message of {length} bytes; 2 to {MESSAGE_LIMIT} are allowed")
    if blob_length > BLOB_LIMIT:
        raise FrameError(f"a blob of {blob_length} bytes; {BLOB_LIMIT} are allowed")


def encode_line(message: Mapping[str, Any]) -> bytes:
    """One line of the way up."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return b'%s,"crc":"%08x"}\n' % (body[:-1], zlib.crc32(body))


def decode_line(line: bytes) -> dict[str, Any]:
    """The message of a line. Raises `FrameError` for a line that was cut, changed or never ours."""
    match = _LINE.match(line)
    if match is None:
        raise FrameError(f"not a line of the protocol: {line[:60]!r}")
    body = match.group(1) + b"}"
    if zlib.crc32(body) != int(match.group(2), 16):
        raise FrameError(f"the checksum of a line is wrong: {line[:60]!r}")
    message = json.loads(body)
    if not isinstance(message, dict):
        raise FrameError("a line holds no JSON object")
    return message


def pack(data: bytes) -> bytes:
    """Compressed for the way, twice where that helps: long repetitions compress a second time. Begins with 1 or 2."""
    once = zlib.compress(data, 6)
    twice = zlib.compress(once, 6) if len(once) < len(data) // 2 else once
    return b"2" + twice if len(twice) < len(once) else b"1" + once


def unpack(packed: bytes, length: int) -> bytes:
    """What was packed, `length` bytes. Raises `FrameError` for another length, before more than that is allocated."""
    if not 0 <= length <= UNPACKED_LIMIT:
        raise FrameError(f"{length} bytes unpacked; {UNPACKED_LIMIT} are allowed")
    data = packed[1:]
    if packed[:1] == b"2":
        data = _inflated(data, BLOB_LIMIT)
    data = _inflated(data, length)
    if len(data) != length:
        raise FrameError(f"a blob has {len(data)} bytes unpacked, not the {length} it was said to have")
    return data


def _inflated(data: bytes, limit: int) -> bytes:
    opener = zlib.decompressobj()
    try:
        found = opener.decompress(data, limit + 1)
    except zlib.error as error:
        raise FrameError(f"a blob does not unpack: {error}") from error
    if not opener.eof or len(found) > limit:
        raise FrameError(f"a blob does not unpack, or to more than {limit} bytes")
    return found


def blob_name(data: bytes) -> str:
    """The name under which a blob is asked for: the SHA-256 of its content, unpacked."""
    return hashlib.sha256(data).hexdigest()
