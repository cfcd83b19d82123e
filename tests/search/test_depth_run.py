"""A whole run that may drop residual branches, from profiling to the exported file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

from hwprune.core.files import read_json
from hwprune.core.measurement import Target
from hwprune.devices import connect
from hwprune.graph import Recipe
from hwprune.latency.table import LatencyTable
from hwprune.search.outcomes import Run
from hwprune.training import Data

Search = Callable[..., Run]


def test_a_run_may_drop_whole_branches(search: Search, few_digits: Data, tables: Path) -> None:
    run = search(latency="12%", depth=True, method="greedy", options={"floor": 0.0}, min_keep=0.25)
    result = run.result
    assert result.verdict == "pass"
    gone = [name for name, width in result.widths.items() if width == 0]
    assert gone
    shipped = onnx.load_model_from_string((run.folder / "model.onnx").read_bytes())
    assert not {node.name for node in shipped.graph.node} & {f"{name}/Conv" for name in gone}
    images = few_digits.batch("test", torch.arange(1))[0]
    with connect(Target("simulated", "simulated")) as board, torch.no_grad():
        (outputs,) = board.infer((run.folder / "model.onnx").read_bytes(), {"input": images.numpy()})
        np.testing.assert_allclose(outputs, run.model.eval()(images).numpy(), rtol=0, atol=1e-4)
    recipe = Recipe.from_json(read_json(run.folder / "recipe.json"))
    assert all(recipe.keep[name] == () for name in gone)
    opened = [LatencyTable.open(path.parent) for path in sorted(tables.rglob("table.json"))]
    (deep,) = (table for table in opened if any(group.skippable for group in table.space.groups))
    rows = [row for row in deep.rows if 0 in row.widths]
    assert len(rows) > 10
    assert all(row.latency_ms < deep.rows[0].latency_ms for row in rows)
