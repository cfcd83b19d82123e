"""A table from a day on which the machine was faster: told, checked, and no yardstick for a budget in milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hwprune import api
from hwprune.core.errors import TableError
from hwprune.core.events import Caution, Event, Note
from hwprune.core.files import read_json
from hwprune.core.measurement import Measurement
from hwprune.core.units import percent
from hwprune.latency.table import LatencyTable
from hwprune.search import finish
from hwprune.search.finish import Verified
from hwprune.search.outcomes import Run
from hwprune.search.tables import table_folders
from hwprune.training import Data

Search = Callable[..., Run]
SHAPE = (1, 1, 8, 8)


@pytest.fixture
def table(dense: nn.Module, tmp_path: Path) -> LatencyTable:
    """What the runs of the `search` fixture profile, in a folder of its own."""
    given: Any = {"device": "simulated", "runtime": "simulated", "samples": 40, "tile": 16}
    return api.profile(dense, SHAPE, tables=tmp_path / "old", **given)


def from_a_faster_day(table: LatencyTable, factor: float, unevenly: float = 1.0) -> None:
    """The reference kernel took that many times less when the table was made; the networks, another factor less."""
    rows, layers = table.rows, table.layer_rows
    root = table.folder.parents[2]
    probe = (table.folder.parent / "tile.json").read_text()
    shutil.rmtree(table.folder)
    given = {name: getattr(table, name) for name in ("model_name", "fingerprint", "space", "op_templates", "tile")}
    made = LatencyTable.create(root, reference_ms=table.reference_ms / factor, **given)
    (made.folder.parent / "tile.json").write_text(probe)
    for row in rows:
        made.append(replace(row, latency_ms=row.latency_ms / factor / unevenly), fingerprint=table.fingerprint)
    for sample in layers:
        made.append_layers(sample, fingerprint=table.fingerprint)


def again(table: LatencyTable, dense: nn.Module) -> list[Event]:
    """The events of the same command on the same table today."""
    heard: list[Event] = []
    given: Any = {"device": "simulated", "runtime": "simulated", "samples": 40, "tile": 16}
    api.profile(dense, SHAPE, tables=table.folder.parents[2], on_event=heard.append, **given)
    return heard


def test_nothing_is_said_on_the_same_day(table: LatencyTable, dense: nn.Module) -> None:
    assert not [event for event in again(table, dense) if isinstance(event, Caution)]


@pytest.mark.parametrize("factor", [1.05, 1.5])
def test_a_slower_machine_is_told_with_both_numbers(table: LatencyTable, dense: nn.Module, factor: float) -> None:
    now_ms = table.reference_ms
    from_a_faster_day(table, factor)
    heard = again(table, dense)
    (caution,) = (event for event in heard if isinstance(event, Caution))
    assert f"({percent(factor - 1, 0, signed=True)})" in caution.text
    for ms in (now_ms, now_ms / factor):
        assert f"{ms:.3g}" in caution.text
    canaries = [event.text for event in heard if isinstance(event, Note) and "measured again" in event.text]
    assert len(canaries) == (factor > 1.1)


def test_rows_of_another_machine_are_not_mixed(table: LatencyTable, dense: nn.Module) -> None:
    from_a_faster_day(table, 1.5, unevenly=1.3)
    with pytest.raises(TableError, match=r"its networks take \+(29|30|31) % in units of that"):
        again(table, dense)


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_budget_in_milliseconds_is_one_of_today(
    search: Search, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """Half as fast for good: what takes 0.6 of the dense network's time in the table's milliseconds takes 1.2 of it.

    Also where the first finetuned network misses the budget and the next candidates are timed beside it.
    """
    root = table.folder.parents[2]
    share = search(tables=root, run_dir=tmp_path / "before").result
    from_a_faster_day(LatencyTable.open(table_folders(root)[0]), 2.0)
    heard: list[Event] = []
    honest, asked = finish.verify, []

    def verify(*given: Any, **options: Any) -> Verified:
        found = honest(*given, **options)
        asked.append(found)
        return found if len(asked) == attempts else replace(found, budget_ms=0.97 * found.budget_ms)

    monkeypatch.setattr(finish, "verify", verify)
    run = search(
        latency=None, latency_ms=share.budget_ms, tables=root, run_dir=tmp_path / "after", on_event=heard.append
    )
    assert run.verdict == "pass"
    assert run.result.dense_ms == pytest.approx(share.dense_ms, rel=0.02)
    assert run.result.measured_ms is not None
    assert 0.9 * share.budget_ms < run.result.measured_ms <= share.budget_ms
    assert len(list((run.folder / "settled").iterdir())) == attempts
    assert run.result.predicted_ms == pytest.approx(run.result.measured_ms, rel=0.05)
    assert any("when the latency table was made" in text for text in run.result.warnings)
    table = LatencyTable.open(table_folders(root)[0])
    found = [row for row in table.rows if row.kind == "search" and "after" in row.session]
    assert found
    assert all(row.latency_ms < 0.6 * share.budget_ms for row in found)  # in the table's own milliseconds


def test_a_share_is_judged_in_the_milliseconds_of_the_table(
    search: Search, table: LatencyTable, tmp_path: Path
) -> None:
    from_a_faster_day(table, 2.0)
    run = search(tables=table.folder.parents[2])
    assert run.verdict == "pass"
    dense_measured = Measurement.from_json(read_json(run.folder / "baseline.json")["dense"])
    assert dense_measured.reference_ms == pytest.approx(table.reference_ms / 2)
    assert any("when the latency table was made" in text for text in run.result.warnings)


def test_a_comparison_shares_a_budget_in_the_milliseconds_of_the_table(
    dense: nn.Module, few_digits: Data, table: LatencyTable, tmp_path: Path
) -> None:
    """Its runs have one budget in ms, measured once; each in its own session's would have another."""
    from_a_faster_day(table, 2.0)
    found = api.compare(
        dense,
        few_digits,
        methods=("uniform",),
        budgets=("60%",),
        seeds=1,
        device="simulated",
        samples=40,
        tile=16,
        epochs=0.5,
        total_epochs=0.5,
        tables=table.folder.parents[2],
        run_dir=tmp_path / "compared",
    )
    (run,) = found.runs
    assert run.verdict == "pass"
    assert run.share is not None
    assert 0.5 < run.share < 0.61
