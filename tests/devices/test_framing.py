"""The bytes between host and device: round trips, and every way in which they can lie."""

from __future__ import annotations

import hashlib
import io
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprune.devices.agent import framing
from hwprune.devices.agent.framing import FrameError, decode_line, encode_frame, encode_line, pack, read_frame, unpack
from hwprune.devices.remote.connection import AgentConnection
from hwprune.devices.remote.transport import ConnectionLost

VALUES = st.none() | st.integers() | st.floats(allow_nan=False, allow_subnormal=False) | st.text() | st.booleans()
MESSAGES = st.dictionaries(st.text(), VALUES)


class Refusing(io.BytesIO):
    """A stream that must not be read further than its header."""

    def read(self, size: int | None = -1) -> bytes:
        raise AssertionError(f"{size} bytes were asked for")


def header(length: int, blob_length: int, body: bytes = b"") -> bytes:
    return b"HWP1 %d %d %s\n" % (length, blob_length, hashlib.sha256(body).hexdigest().encode())


@given(MESSAGES, st.binary(max_size=300))
def test_frames_come_back(message: dict[str, object], blob: bytes) -> None:
    stream = io.BytesIO(encode_frame(message, blob) * 2)
    assert read_frame(stream) == (message, blob)
    assert read_frame(stream) == (message, blob)
    assert read_frame(stream) is None


@given(MESSAGES)
def test_lines_come_back(message: dict[str, object]) -> None:
    line = encode_line({"seq": 1, **message})
    assert line.count(b"\n") == 1
    assert decode_line(line) == {"seq": 1, **message}


@pytest.mark.parametrize("lengths", [(0, 0), (1, 0), (2**63, 0), (2, 2**63), (2**20 + 1, 0), (2, 2**26 + 1)])
def test_a_lying_length_is_refused_before_anything_is_read(lengths: tuple[int, int]) -> None:
    with pytest.raises(FrameError, match="are allowed"):
        read_frame(Refusing(header(*lengths)))


@pytest.mark.parametrize(
    "start",
    [
        b"HWP2 2 0 " + b"0" * 64 + b"\n",
        b"HWP1 -2 0 " + b"0" * 64 + b"\n",
        b"HWP1 2 0 " + b"0" * 63 + b"\n",
        b"HWP1 " + b"9" * 20 + b" 0 " + b"0" * 64 + b"\n",
        b"x" * 1000,
        b"\x00\xff\n",
    ],
)
def test_what_is_no_header_is_refused(start: bytes) -> None:
    with pytest.raises(FrameError, match="no frame begins with"):
        read_frame(Refusing(start))


def test_a_wrong_hash_is_refused() -> None:
    good = encode_frame({"a": 1}, b"blob")
    for place in (40, len(good) - 6, len(good) - 1):
        spoilt = bytearray(good)
        spoilt[place] ^= 1
        with pytest.raises(FrameError, match=r"hash of a frame is wrong|no frame begins"):
            read_frame(io.BytesIO(bytes(spoilt)))


@pytest.mark.parametrize("body", [b"[1]", b"{]", b"\xff\xff"])
def test_a_frame_without_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError, match="no JSON object"):
        read_frame(io.BytesIO(header(len(body), 0, body) + body))


def test_a_torn_frame_is_the_end() -> None:
    whole = encode_frame({"a": 1}, b"blob")
    assert all(read_frame(io.BytesIO(whole[:cut])) is None for cut in range(len(whole) - 8, len(whole)))


@given(st.integers(0, 200), st.integers(0, 7))
def test_a_flipped_bit_of_a_line_is_found(place: int, bit: int) -> None:
    line = bytearray(encode_line({"seq": 7, "type": "result", "value": {"x": 1.25, "text": "abc"}}))
    line[place % len(line)] ^= 1 << bit
    with pytest.raises(FrameError):
        decode_line(bytes(line))


def test_a_foreign_line_is_no_message() -> None:
    for line in (b"Welcome!\n", b'{"a":1}\n', b"", b'[1],"crc":"00000000"}\n'):
        with pytest.raises(FrameError):
            decode_line(line)


@given(st.binary(max_size=2000), st.integers(1, 50))
def test_blobs_come_back(data: bytes, times: int) -> None:
    assert unpack(pack(data * times), len(data) * times) == data * times


def test_repetition_is_packed_twice() -> None:
    data = bytes(range(256)) * 40_000
    once = len(zlib.compress(data, 6))
    assert pack(data)[:1] == b"2"
    assert len(pack(data)) < once / 10


@pytest.mark.parametrize("claimed", [0, 99, 101, -1, 1 << 40])
def test_a_blob_of_another_length_is_refused(claimed: int) -> None:
    with pytest.raises(FrameError):
        unpack(pack(b"x" * 100), claimed)


@pytest.mark.parametrize("packed", [b"", b"1", b"2", b"3abc", b"1abc", b"2" + zlib.compress(b"no zlib inside")])
def test_nonsense_does_not_unpack(packed: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(packed, 5)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = b"2" + zlib.compress(zlib.compress(b"\x00" * (8 << 20)))
    with pytest.raises(FrameError, match="more than 1000 bytes"):
        unpack(bomb, 1000)


def test_what_the_reader_would_refuse_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "BLOB_LIMIT", 10)
    with pytest.raises(FrameError, match="a blob of 11 bytes; 10 are allowed"):
        encode_frame({"a": 1}, b"x" * 11)
    assert json.loads(encode_frame({"a": 1}, b"x" * 10).split(b"\n")[1][:7]) == {"a": 1}


class _Lines:
    """A channel on which these lines arrive."""

    def __init__(self, *lines: bytes) -> None:
        self._lines = list(lines)

    def receive(self, silence_s: int) -> bytes:
        return self._lines.pop(0)


@pytest.mark.parametrize("late", [2, 3])
def test_a_message_that_comes_again_or_late_ends_the_connection(late: int) -> None:
    """Numbers rise; those without one (a pulse) may come at any time."""
    messages = [{"type": "round", "seq": 3}, {"type": "pulse"}, {"type": "round", "seq": late}]
    connection = AgentConnection(_Lines(*(encode_line(message) for message in messages)), 15)  # type: ignore[arg-type]
    assert [connection.receive()["type"] for _ in range(2)] == ["round", "pulse"]
    with pytest.raises(ConnectionLost, match=f"message {late} came after message 3"):
        connection.receive()
