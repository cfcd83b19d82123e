"""A whole run in which layers keep all their channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hwprune import api
from hwprune.core.errors import RunError, UsageError
from hwprune.core.files import read_json
from hwprune.latency.table import LatencyTable
from hwprune.search.outcomes import Run
from hwprune.search.settings import SearchSettings
from hwprune.training import Data

Search = Callable[..., Run]
STREAM = ("conv1", "layer1.0.conv1", "layer1.1.conv1")


def test_protected_layers_keep_their_channels(search: Search, dense: torch.nn.Module, few_digits: Data) -> None:
    run = search(latency="80%", method="greedy", protect=["layer1"])
    result = run.result
    assert result.verdict == "pass"
    assert not set(STREAM) & set(result.dense_widths), "conv1 makes the channels that layer1 adds to"
    assert min(result.widths[name] / units for name, units in result.dense_widths.items()) < 1
    whole, pruned = dict(dense.named_modules()), dict(run.model.named_modules())
    for name in (*STREAM, "layer1.0.conv2", "layer1.1.conv2"):
        assert pruned[name].weight.shape[0] == whole[name].weight.shape[0], name
    assert not set(STREAM) & set(read_json(run.folder / "recipe.json")["keep"])
    with pytest.raises(RunError, match=r"protect: .*layer1.* there, \(\) now"):
        search(latency="80%", method="greedy")
    for verb in (api.load, api.finetune, api.export):
        with pytest.raises(UsageError, match=r"a run of a network object, .*, which only your code can make"):
            verb(run.folder)
    further = api.finetune(run.folder, epochs=0.25, build=lambda: dense, data=few_digits)
    assert further.result.widths == result.widths


def test_the_table_is_of_what_may_be_cut(search: Search, tables: Path) -> None:
    search(latency="80%", method="greedy", protect="layer[12]")
    opened = [LatencyTable.open(path.parent) for path in tables.rglob("table.json")]
    (table,) = (
        table for table in opened if table.space.names == ("layer3.0.conv1", "layer3.0.conv2", "layer3.1.conv1")
    )
    assert len({row.widths for row in table.rows}) > 30


@pytest.mark.parametrize(
    ("protect", "message"),
    [
        (["layr1"], r"nothing to protect: no group or module 'layr1'\. Did you mean"),
        (["layer*", "conv1"], r"no channel group of this network can be cut: .*protected on request"),
    ],
)
def test_a_name_of_nothing_and_all_of_them(search: Search, tmp_path: Path, protect: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search(protect=protect)
    assert not (tmp_path / "run" / "result.json").exists()


def test_settings_keep_the_names(tmp_path: Path) -> None:
    settings = SearchSettings.make(latency="60%", protect=["head.*", "layer1"])
    settings.write(tmp_path / "run.toml")
    assert SearchSettings.read(tmp_path / "run.toml") == settings
    assert settings.protect == ("head.*", "layer1")
    assert SearchSettings.make(latency="60%", protect="head.*,layer1") == settings
