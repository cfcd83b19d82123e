"""Which table is meant, and which latency model belongs to it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hwprune.core.errors import TableError
from hwprune.core.events import Caution, Event
from hwprune.latency.table import SCHEMA, LatencyTable, TableRow
from hwprune.search import tables as module
from hwprune.search.tables import MODEL_FILE, find_table, stored_model
from hwprune.testing.staircase import FINGERPRINT, StaircaseBoard, StaircaseGraph, staircase_samples, staircase_space

SPACE = staircase_space()
DENSE = SPACE.dense()


def made(root: Path, name: str = "net") -> LatencyTable:
    return LatencyTable.obtain(
        root, model_name=name, graph=StaircaseGraph(), space=SPACE, board=StaircaseBoard(), tile=16
    )


def add(table: LatencyTable, factor: float = 1.0, *, session: str = "one", disturbed: bool = False) -> None:
    """The same forty networks, all slower by the factor."""
    samples = staircase_samples(40, noise=0.0).merged()
    for widths, exact_ms in zip(samples.values.tolist(), samples.latency_ms, strict=True):
        ms = factor * float(exact_ms)
        row = TableRow(tuple(widths), ms, (ms, ms), (ms,) * 8, "uniform", session, disturbed)
        table.append(row, fingerprint=FINGERPRINT)


class TestStoredModel:
    def test_it_is_fitted_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        table = made(tmp_path)
        add(table)
        first = stored_model(table)
        monkeypatch.setattr(module, "make_model", lambda kind: pytest.fail("fitted again"))
        again = stored_model(LatencyTable.open(table.folder))
        assert again.predict(DENSE) == first.predict(DENSE)

    def test_labels_measured_again_in_a_quiet_hour_count(self, tmp_path: Path) -> None:
        table = made(tmp_path)
        add(table, 1.6, disturbed=True)
        quiet_ms = float(staircase_samples(40, noise=0.0).latency_ms[0])  # the dense network is the first
        assert stored_model(table).predict(DENSE).latency_ms == pytest.approx(1.6 * quiet_ms, rel=0.02)
        add(table, session="quiet")
        assert stored_model(table).predict(DENSE).latency_ms == pytest.approx(quiet_ms, rel=0.02)

    def test_a_repeat_that_corrects_a_label_counts(self, tmp_path: Path) -> None:
        table = made(tmp_path)
        add(table)
        before = stored_model(table)
        add(table, 1.21, session="repeat")  # the geometric mean of both counts
        values = np.array([DENSE.values_tuple()])
        assert stored_model(table).predict_batch(values) == pytest.approx(1.1 * before.predict_batch(values), rel=0.01)

    def test_a_model_of_an_older_version_is_fitted_again(self, tmp_path: Path) -> None:
        table = made(tmp_path)
        add(table)
        model = stored_model(table)
        document = json.loads((table.folder / MODEL_FILE).read_text())
        del document["data"]
        (table.folder / MODEL_FILE).write_text(json.dumps(document))
        assert stored_model(table).predict(DENSE) == model.predict(DENSE)
        assert "data" in json.loads((table.folder / MODEL_FILE).read_text())


class TestFindTable:
    @staticmethod
    def broken(root: Path, text: str) -> Path:
        """A table of something else that cannot be read, newer than all others."""
        folder = root / "cpu" / "other" / "broken"
        folder.mkdir(parents=True)
        (folder / "table.json").write_text(text)
        os.utime(folder / "table.json", (4e9, 4e9))
        return folder

    @pytest.mark.parametrize("text", ["{", '{"schema": "hwprune.latency_table/0"}', '{"schema": "SCHEMA"}'])
    def test_one_that_cannot_be_read_is_left_out(self, tmp_path: Path, text: str) -> None:
        table = made(tmp_path)
        folder = self.broken(tmp_path, text.replace("SCHEMA", SCHEMA))
        heard: list[Event] = []
        assert find_table("net", tmp_path, on_event=heard.append) == table
        (caution,) = heard
        assert isinstance(caution, Caution)
        assert str(folder) in caution.text

    def test_it_is_named_where_nothing_else_fits(self, tmp_path: Path) -> None:
        folder = self.broken(tmp_path, "{")
        with pytest.raises(TableError, match=f"no latency table of net in .*{folder}, which cannot be read"):
            find_table("net", tmp_path)

    def test_one_that_is_asked_for_is_not_left_out(self, tmp_path: Path) -> None:
        folder = self.broken(tmp_path, '{"schema": "hwprune.latency_table/0"}')
        with pytest.raises(TableError, match="is not a latency table of the form"):
            find_table(str(folder), tmp_path)
