"""What a search begins with: networks that ONNX cannot cut everywhere, small ones, and tables of one name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwprune import api
from hwprune.core.errors import TableError
from hwprune.core.events import Caution, Event, Note
from hwprune.core.target import Target
from hwprune.devices import connect
from hwprune.graph import OnnxTemplate, cut, trace
from hwprune.graph.onnx.labels import CannotCut
from hwprune.graph.onnx.rules import RULES
from hwprune.latency.table import LatencyTable
from hwprune.search import survey
from hwprune.search.survey import traced, traced_and_exported
from hwprune.search.tile import LEAST_NETWORKS, padding_step, target_space

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Mixing(nn.Module):
    """An einsum mixes channels: torch's tape can follow it; without its rule the ONNX operator cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.mix = nn.Parameter(torch.randn(16, 24))
        self.body = nn.Conv2d(24, 16, 1)
        self.head = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bchw,cd->bdhw", torch.relu(self.stem(x)), self.mix)
        return self.head(torch.relu(self.body(x))).mean((2, 3))  # type: ignore[no-any-return]


def small_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5)).eval()


def test_groups_that_onnx_cannot_cut_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "Einsum")  # as for an operator that nobody has taught us yet
    model = Mixing().eval()
    with pytest.raises(CannotCut, match=r"\(Einsum\) cannot be cut") as caught:
        OnnxTemplate.export(model, trace(model, EXAMPLE))
    assert caught.value.groups == ("stem", "mix")
    heard: list[Event] = []
    graph, template = traced_and_exported(model, EXAMPLE, heard.append)
    assert [group.name for group in graph.groups if group.removable] == ["body"]
    assert graph.group("stem").reason == "protected on request"
    (caution,) = (event for event in heard if isinstance(event, Caution))
    assert caution.text.endswith("kept whole: stem, mix")
    keep = {"body": range(5)}
    with connect(Target()) as board, torch.no_grad():
        (found,) = board.infer(template.at(keep), {"input": EXAMPLE.numpy() + 1})
        expected = cut(model, graph, keep)(EXAMPLE + 1)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_a_small_network_gets_a_finer_grid(tmp_path: Path) -> None:
    graph = trace(small_net(), EXAMPLE)
    heard: list[Event] = []
    with connect(Target("simulated", "simulated")) as board:
        assert graph.space(tile=16, min_keep=0.2).size < LEAST_NETWORKS
        space, tile = target_space(graph, board, tmp_path, min_keep=0.2, on_event=heard.append)
        assert space.size >= LEAST_NETWORKS
        assert tile in (4, 8)
        assert any(isinstance(event, Note) and f"steps of {tile}" in event.text for event in heard)
        asked, step = target_space(graph, board, tmp_path, tile=16, min_keep=0.2)
        assert (asked.size, step) == (graph.space(tile=16, min_keep=0.2).size, 16)  # what was asked for is left alone


@pytest.fixture
def table(tmp_path: Path) -> Any:
    return api.profile(
        small_net(), EXAMPLE, device="simulated", runtime="simulated", samples=40, tile=4, tables=tmp_path / "tables"
    )


def test_padding_is_that_of_the_device_whatever_the_grid(table: Any) -> None:
    assert (table.tile, table.step) == (4, 16)
    with connect(Target("simulated", "simulated")) as board:
        assert padding_step(board, table, 0) == 16


def test_latency_models_round_to_the_step_of_the_device(table: Any) -> None:
    """Rounded to the grid of 4 the same model errs by 6 %."""
    report = api.fit(table, kinds=("lpnet",))
    assert report.scores.mape < 0.01
    assert report.model.step == 16


def test_a_table_that_knows_no_step_has_its_tile(table: Any) -> None:
    header = json.loads((table.folder / "table.json").read_text())
    del header["step"]
    (table.folder / "table.json").write_text(json.dumps(header))
    opened = LatencyTable.open(table.folder)
    assert (opened.tile, opened.step) == (4, 4)
    assert opened.samples().tile == 4


def test_predict_finds_the_table_of_the_image_size(tmp_path: Path) -> None:
    given: dict[str, Any] = {"device": "simulated", "runtime": "simulated", "tables": tmp_path}
    model = "digits_resnet"
    for size in (16, 8):
        api.profile(model, (1, 1, size, size), samples=20, tile=32, **given)
    small, large, newest = (api.predict(model, x, **given) for x in ((1, 1, 8, 8), (1, 1, 16, 16), None))
    assert small.latency_ms == newest.latency_ms < large.latency_ms
    assert small.simulated
    with pytest.raises(TableError, match="no latency table of digits_resnet"):
        api.predict(model, (1, 1, 12, 12), **given)


class _Reversed(nn.Module):
    """A network that uses its channels in another order, by an operator that no cut can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(torch.flip(self.one(x), (1,))))


def test_what_stays_whole_is_told_with_operator_place_and_reason() -> None:
    heard: list[Event] = []
    graph = traced(_Reversed().eval(), torch.randn(1, 3, 4, 4), heard.append)
    (pin,) = (pin for pin in graph.pins if pin.op != "output")
    told = [event.text for event in heard if isinstance(event, Note)]
    assert told == [
        "1 of 3 channel groups can be cut, 16 units",
        f"16 channels stay whole, {pin.op} ({pin.source}): {pin.reason}",
    ]
    assert "test_survey.py:" in told[1]


def test_only_the_first_places_are_told_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "PINS_TOLD", 0)
    heard: list[Event] = []
    traced(_Reversed().eval(), torch.randn(1, 3, 4, 4), heard.append)
    assert heard[1] == Note("1 more place(s) keep channels whole; hwprune.trace(model, x).pins lists all")
