"""The tables in `latency_tables/` can be opened and fitted, and say where they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwprune.latency.models._base import make_model
from hwprune.latency.table import LatencyTable

TABLES = sorted(path.parent for path in (Path(__file__).parents[2] / "latency_tables").glob("cpu/*/*/table.json"))
OURS = [folder for folder in TABLES if folder.name.startswith(("mobilenetv2", "resnet56"))]


@pytest.mark.parametrize("folder", OURS, ids=lambda folder: folder.name)
def test_a_shipped_table_is_whole(folder: Path) -> None:
    table = LatencyTable.open(folder)
    assert table.damaged_lines == 0
    assert not table.fingerprint.cpu_model.startswith("SIMULATED")
    assert len({row.widths for row in table.rows}) >= 100
    assert len(table.layer_rows) >= 5 or table.fingerprint.runtime == "litert", "it gives none"
    samples = table.samples()
    model = make_model("macs").fit(samples)
    errors = np.abs(model.predict_batch(samples.values) / samples.latency_ms - 1)
    assert float(errors.mean()) < 0.15, "even MACs alone describe a sane table"


def test_tables_are_shipped() -> None:
    assert len(OURS) >= 2
