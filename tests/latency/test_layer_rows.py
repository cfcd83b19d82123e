"""Layer times in a table come from its own device, as whole networks' do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwprune.core.errors import TableError
from hwprune.core.measurement import LayerTime
from hwprune.latency.samples import LayerSample
from hwprune.latency.table import LatencyTable
from hwprune.testing.staircase import FINGERPRINT, staircase_ops, staircase_space


def test_layer_times_of_another_device_are_refused(tmp_path: Path) -> None:
    space = staircase_space()
    table = LatencyTable.create(
        tmp_path,
        model_name="net",
        fingerprint=FINGERPRINT,
        reference_ms=0.5,
        space=space,
        op_templates=staircase_ops(),
        tile=16,
    )
    layers = (LayerTime("stem/node", "Conv", 0.1, ((1, 3, 48, 48),), ((1, 32, 24, 24),), ""),)
    sample = LayerSample(space.dense().values_tuple(), layers)
    with pytest.raises(TableError, match="cpu_model: none != other"):
        table.append_layers(sample, fingerprint=replace(FINGERPRINT, cpu_model="other"))
    assert LatencyTable.open(table.folder).layer_rows == table.layer_rows == ()
    table.append_layers(sample, fingerprint=FINGERPRINT)
    assert LatencyTable.open(table.folder).layer_rows == (sample,)
