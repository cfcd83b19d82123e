"""The latency table: one fingerprint, journals that survive, exports that agree."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwprune.core.errors import TableError, UsageError
from hwprune.core.measurement import Fingerprint, LayerTime, Protocol
from hwprune.latency.samples import LayerSample
from hwprune.latency.table import LatencyTable, TableRow, table_folder
from hwprune.testing.staircase import FINGERPRINT, StaircaseBoard, StaircaseGraph, staircase_ops, staircase_space

SPACE = staircase_space()
DENSE = SPACE.dense().values_tuple()
SMALLEST = SPACE.smallest().values_tuple()


def _table(root: Path, **changes: object) -> LatencyTable:
    return LatencyTable.create(
        root,
        model_name="zoo:net",
        fingerprint=FINGERPRINT,
        reference_ms=0.5,
        space=SPACE,
        op_templates=tuple(replace(op, **changes) for op in staircase_ops()),
        tile=16,
    )


def _row(widths: tuple[int, ...] = DENSE, latency_ms: float = 1.5, session: str = "one") -> TableRow:
    return TableRow(widths, latency_ms, (latency_ms * 0.99, latency_ms * 1.01), (3.0, 3.1), "uniform", session)


def test_stands_where_its_target_says(tmp_path: Path) -> None:
    table = _table(tmp_path)
    assert table.folder.parent == tmp_path / "staircase" / "simulated-1_fp32_b1_t1"
    named = f"zoo-net-{SPACE.signature()[:8]}-{FINGERPRINT.digest()[:8]}"
    assert re.fullmatch(rf"{named}-[0-9a-f]{{8}}", table.folder.name)
    assert table.folder == table_folder(tmp_path, "zoo:net", FINGERPRINT, SPACE, staircase_ops())
    document = json.loads((table.folder / "table.json").read_text())
    assert document["simulated"] is True
    assert document["provenance"]["protocol"]["name"] == "sample"


def test_opens_as_it_was_written(tmp_path: Path) -> None:
    table = _table(tmp_path)
    table.append(_row(), fingerprint=FINGERPRINT)
    layers = LayerSample(DENSE, (LayerTime("stem/node", "Conv", 0.1, ((1, 3, 48, 48),), ((1, 32, 24, 24),), "relu"),))
    table.append_layers(layers, fingerprint=FINGERPRINT)
    again = LatencyTable.open(table.folder)
    assert again == table
    assert again.rows == table.rows == (_row(),)
    assert again.layer_rows == (layers,)
    assert again.damaged_lines == 0


def test_samples_of_the_first_rows_and_of_a_session(tmp_path: Path) -> None:
    """What others measure later is left out, what the session measures is not."""
    table = _table(tmp_path)
    for place, (kind, session) in enumerate([("uniform", "a"), ("search", "b"), ("uniform", "c"), ("search", "own")]):
        table.append(replace(_row(latency_ms=place + 1.0, session=session), kind=kind), fingerprint=FINGERPRINT)
    assert list(table.samples(kinds=("uniform",)).latency_ms) == [1.0, 3.0]
    assert list(table.samples(kinds=("uniform",), first=1).latency_ms) == [1.0]
    assert list(table.samples(kinds=("uniform",), session="own", first=1).latency_ms) == [1.0, 4.0]
    assert list(table.samples(kinds=("uniform",), first=2).latency_ms) == [1.0, 3.0], "other kinds do not count"
    assert list(table.samples(first=2).latency_ms) == [1.0, 2.0]


def test_a_foreign_fingerprint_is_refused_with_the_fields(tmp_path: Path) -> None:
    table = _table(tmp_path)
    foreign = replace(FINGERPRINT, runtime_version="1", threads=2, cpu_model="other", flags=(("spinning", "on"),))
    with pytest.raises(TableError) as caught:
        table.append(_row(), fingerprint=foreign)
    for part in ("cpu_model: none != other", "threads: 1 != 2", "flag spinning: absent != on"):
        assert part in caught.value.message
    assert table.rows == ()
    assert not (table.folder / "rows.jsonl").exists()


@pytest.mark.parametrize(
    "name", ["device", "cpu_model", "cores", "runtime", "runtime_version", "precision", "batch", "threads", "os"]
)
def test_every_field_counts(tmp_path: Path, name: str) -> None:
    value = getattr(FINGERPRINT, name)
    foreign = replace(FINGERPRINT, **{name: value + 1 if isinstance(value, int) else f"{value}x"})
    with pytest.raises(TableError, match=f"{name}: "):
        _table(tmp_path).check(foreign)


def _found(root: Path, fingerprint: Fingerprint = FINGERPRINT, **changes: object) -> LatencyTable | None:
    ops = tuple(replace(op, **changes) for op in staircase_ops())
    return LatencyTable.find(root, model_name="zoo:net", fingerprint=fingerprint, space=SPACE, op_templates=ops)


def test_find_is_none_or_the_table_or_an_error(tmp_path: Path) -> None:
    assert _found(tmp_path) is None
    table = _table(tmp_path)
    assert _found(tmp_path) == table
    other = replace(FINGERPRINT, cpu_model="other")
    assert _found(tmp_path, other) is None
    with pytest.raises(TableError, match="cpu_model: none != other"):
        table.check(other)


def test_networks_of_one_name_and_space_have_tables_of_their_own(tmp_path: Path) -> None:
    first = _table(tmp_path)
    assert _found(tmp_path, in_size=(96, 96)) is None
    second = _table(tmp_path, in_size=(96, 96))
    assert second.folder.parent == first.folder.parent
    assert second.folder != first.folder
    assert _found(tmp_path) == first
    assert _found(tmp_path, in_size=(96, 96)) == second


def test_a_table_from_before_the_operators_were_in_its_name_is_found(tmp_path: Path) -> None:
    table = _table(tmp_path)
    table.append(_row(), fingerprint=FINGERPRINT)
    named_before = table_folder(tmp_path, "zoo:net", FINGERPRINT, SPACE)
    assert table.folder.name.startswith(named_before.name)
    table.folder.rename(named_before)
    found = _found(tmp_path)
    assert found is not None
    assert (found.folder, found.rows) == (named_before, (_row(),))
    assert _found(tmp_path, in_size=(96, 96)) is None
    assert _table(tmp_path, in_size=(96, 96)).rows == ()


def test_a_row_keeps_what_is_known_of_its_engine(tmp_path: Path) -> None:
    measured = StaircaseBoard().measure({"net": json.dumps(dict(SPACE.dense())).encode()}, protocol=Protocol.sample())
    rounds = tuple(replace(item, wall_ms=2.5) for item in measured["net"].rounds)
    told = replace(
        measured["net"], rounds=rounds, facts=(("graph", "captured"), ("kernels", "4")), notes=("host_bound",)
    )
    row = TableRow.of(DENSE, told, kind="dense", session="one")
    assert (row.wall_ms, row.facts, row.notes) == (2.5, (("graph", "captured"), ("kernels", "4")), ("host_bound",))
    table = _table(tmp_path)
    table.append(row, fingerprint=FINGERPRINT)
    again = LatencyTable.open(table.folder)
    assert again.rows == (row,)
    (line,) = again.to_pandas().to_dict("records")
    assert (line["wall_ms"], line["facts"], line["notes"]) == (2.5, "graph captured; kernels 4", "host_bound")


def test_rows_written_before_that_can_be_read() -> None:
    document = {"widths": [16], "latency_ms": 1.5, "ci_ms": [1.4, None], "ratios": [3.0], "kind": "dense"}
    row = TableRow.from_json({**document, "session": "one", "disturbed": False})
    assert (row.wall_ms, row.facts, row.notes) == (0.0, (), ())


def test_a_row_moved_between_tables_is_refused(tmp_path: Path) -> None:
    table = _table(tmp_path)
    table.append(_row(), fingerprint=FINGERPRINT)
    header = json.loads((table.folder / "table.json").read_text())
    header["fingerprint"]["os"] = "elsewhere"
    (table.folder / "table.json").write_text(json.dumps(header))
    with pytest.raises(TableError, match=r"row 1 of .* another fingerprint"):
        LatencyTable.open(table.folder)


def test_a_torn_tail_costs_one_row(tmp_path: Path) -> None:
    table = _table(tmp_path)
    for latency_ms in (1.0, 2.0, 3.0):
        table.append(_row(latency_ms=latency_ms), fingerprint=FINGERPRINT)
    rows = table.folder / "rows.jsonl"
    rows.write_bytes(rows.read_bytes()[:-7])
    again = LatencyTable.open(table.folder)
    assert [row.latency_ms for row in again.rows] == [1.0, 2.0]
    assert again.damaged_lines == 1
    again.append(_row(latency_ms=4.0), fingerprint=FINGERPRINT)
    assert [row.latency_ms for row in LatencyTable.open(table.folder).rows] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("latency_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_latencies_are_refused(latency_ms: float) -> None:
    with pytest.raises(TableError, match="cannot stand in a table"):
        _row(latency_ms=latency_ms)


def test_widths_outside_the_space_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'stem' cannot have width 17"):
        _table(tmp_path).append(_row((17, *DENSE[1:])), fingerprint=FINGERPRINT)


def test_there_is_only_one_table_in_a_place(tmp_path: Path) -> None:
    _table(tmp_path)
    with pytest.raises(TableError, match="there is a latency table"):
        _table(tmp_path)


def test_what_is_no_table_says_so(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"has no table\.json"):
        LatencyTable.open(tmp_path)
    (tmp_path / "table.json").write_text('{"schema": "other/1"}')
    with pytest.raises(TableError, match="is not a latency table of the form"):
        LatencyTable.open(tmp_path)
    (tmp_path / "table.json").write_text('{"schema": "hwprune.latency_table/1"}')
    with pytest.raises(TableError, match="is corrupt"):
        LatencyTable.open(tmp_path)


def test_samples_and_exports_agree(tmp_path: Path) -> None:
    table = _table(tmp_path)
    table.append(_row(DENSE, 2.0), fingerprint=FINGERPRINT)
    table.append(_row(SMALLEST, 0.5), fingerprint=FINGERPRINT)
    table.append(_row(DENSE, 4.0, session="two"), fingerprint=FINGERPRINT)
    samples = table.samples()
    assert samples.values.tolist() == [list(DENSE), list(SMALLEST), list(DENSE)]
    merged = samples.merged()
    assert dict(zip(map(tuple, merged.values.tolist()), merged.latency_ms.tolist(), strict=True)) == pytest.approx(
        {SMALLEST: 0.5, DENSE: np.sqrt(8.0)}
    )
    frame = table.to_pandas()
    assert frame["latency_ms"].tolist() == [2.0, 0.5, 4.0]
    assert frame["head"].tolist() == [256, 16, 256]


def test_an_empty_table_has_no_samples(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="has no rows"):
        _table(tmp_path).samples()


def test_operators_must_be_of_the_space(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"groups outside the space: stem$"):
        LatencyTable.create(
            tmp_path,
            model_name="net",
            fingerprint=FINGERPRINT,
            reference_ms=1.0,
            space=type(SPACE)(SPACE.groups[1:], SPACE.widths[1:]),
            op_templates=staircase_ops()[:2],
            tile=16,
            protocol=Protocol.quick(),
        )


def test_of_two_that_make_a_table_at_once_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked and found none; the second takes the reference of the first."""
    graph, board = StaircaseGraph(), StaircaseBoard(noise=0.0)
    board.reference_ms = 0.5
    first = LatencyTable.obtain(tmp_path, model_name="net", graph=graph, space=SPACE, board=board, tile=16)
    exists = Path.exists
    hidden = iter([True, True, True])  # twice in `find`, once in `create`

    def late(path: Path) -> bool:
        return False if path.name == "table.json" and next(hidden, False) else exists(path)

    monkeypatch.setattr(Path, "exists", late)
    board.reference_ms = 0.7
    second = LatencyTable.obtain(tmp_path, model_name="net", graph=graph, space=SPACE, board=board, tile=16)
    assert next(hidden, None) is None
    assert second.reference_ms == first.reference_ms == LatencyTable.open(first.folder).reference_ms == 0.5
    assert {path.name for path in first.folder.iterdir()} == {"table.json"}
