"""Which table is meant, and which latency model belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwprune.latency.table import LatencyTable, TableRow
from hwprune.search import tables as module
from hwprune.search.tables import MODEL_FILE, stored_model
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
