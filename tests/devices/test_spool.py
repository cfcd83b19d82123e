"""What a device keeps until the host has it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
from pathlib import Path

import pytest

from hwprune.core.errors import DeviceError
from hwprune.devices.agent import spool
from hwprune.devices.agent.blobs import BlobStore
from hwprune.devices.agent.spool import Lease, Spool, valid_session

SESSION = "0123456789abcdef" * 2


def result(job: str, seq: int) -> dict[str, object]:
    return {"seq": seq, "type": "result", "job": job, "value": {"x": seq}}


def test_results_survive_until_they_are_acknowledged(tmp_path: Path) -> None:
    first = Spool(tmp_path, SESSION)
    for seq, job in ((3, "a"), (7, "b"), (9, "c")):
        first.add(result(job, seq))
    second = Spool(tmp_path, SESSION)
    assert second.last_seq == 9
    assert second.result("b") == result("b", 7)
    assert [item["seq"] for item in second.after(3)] == [7, 9]
    second.acknowledge(7)
    third = Spool(tmp_path, SESSION)
    assert third.result("a") is third.result("b") is None
    assert third.after(0) == [result("c", 9)]
    third.acknowledge(9)
    third.close()
    assert not list((tmp_path / "spool").iterdir())


def test_crashes_outlive_acknowledgements(tmp_path: Path) -> None:
    first = Spool(tmp_path, SESSION)
    first.crash("deadly")
    assert not first.poisonous("deadly")
    first.add(result("a", 1))
    first.acknowledge(1)
    second = Spool(tmp_path, SESSION)
    assert not second.poisonous("deadly")
    second.crash("deadly")
    assert Spool(tmp_path, SESSION).poisonous("deadly")
    assert not Spool(tmp_path, SESSION).poisonous("harmless")


def test_a_torn_tail_costs_one_result(tmp_path: Path) -> None:
    kept = Spool(tmp_path, SESSION)
    kept.add(result("a", 1))
    kept.add(result("b", 2))
    path = tmp_path / "spool" / f"{SESSION}.jsonl"
    whole = path.read_bytes()
    for cut in range(1, 30):
        path.write_bytes(whole[:-cut])
        assert Spool(tmp_path, SESSION).result("a") == result("a", 1)


def test_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "QUOTA_BYTES", 50)
    kept = Spool(tmp_path, SESSION)
    kept.add(result("a", 1))
    with pytest.raises(DeviceError, match="has grown to") as caught:
        kept.add(result("b", 2))
    assert "acknowledge" in caught.value.hint


def test_files_of_old_sessions_go(tmp_path: Path) -> None:
    for number in range(spool.KEPT_SESSIONS + 5):
        Spool(tmp_path, f"{number:032x}").add(result("a", 1))
    assert len(list((tmp_path / "spool").iterdir())) == spool.KEPT_SESSIONS + 1


@pytest.mark.parametrize("name", ["", "../../x", "0" * 31, "0" * 33, "G" * 32, "0" * 32 + "\n", None, 7])
def test_a_session_names_a_file_and_nothing_else(name: object) -> None:
    assert not valid_session(name)
    assert valid_session(SESSION)


def _hold(folder: Path, ready: multiprocessing.synchronize.Event, go: multiprocessing.synchronize.Event) -> None:
    assert Lease(folder).take(SESSION)
    ready.set()
    go.wait(60)


def test_a_lease_has_one_holder_and_ends_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready, go))
    holder.start()
    assert ready.wait(120)
    mine = Lease(tmp_path)
    assert not mine.take("f" * 32)
    assert mine.holder() == (SESSION, str(holder.pid))
    holder.kill()
    holder.join()
    assert mine.take("f" * 32)
    assert mine.holder()[0] == "f" * 32


def test_the_least_recently_used_blobs_go() -> None:
    store = BlobStore(limit_bytes=25)
    for name in "ab":
        store.put({"name": name, "length": 1}, b"x" * 10)
    store.frame("a")
    store.put({"name": "c", "length": 1}, b"x" * 10)
    assert store.missing("abc") == ["b"]
    store.put({"name": "d", "length": 1}, b"x" * 100)
    assert store.missing("abcd") == ["a", "b", "c"], "the latest stays, however large"
    assert store.frame("d") == ({"type": "blob", "name": "d", "length": 1}, b"x" * 100)
