"""The probe's result is kept, told and drawn; probing happens once for a target."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
from traced_families import traced

from hwprune.core.errors import NetworkUnfit
from hwprune.core.events import Caution, Event, Note
from hwprune.core.measurement import Target
from hwprune.core.widths import SearchSpace
from hwprune.devices import connect
from hwprune.latency.probe import WIDTHS, TileProbe, read_tile
from hwprune.report.staircase import staircase_drawing
from hwprune.search import tile as module
from hwprune.search.tile import known_probe, model_step, probe_sentences, target_space

SIMULATED = Target("simulated", "simulated")


def staircase() -> TileProbe:
    return read_tile({w: (0.05 + 0.03 * math.ceil(w / 16), 0.01) for w in WIDTHS})


def sawtooth() -> TileProbe:
    """Multiples of 16 have a fast kernel, the channels just below them have not: 15 is slower than 16."""
    return read_tile({w: (0.05 + 0.002 * w + (0.0 if w % 16 == 0 else 0.05), 0.01) for w in WIDTHS})


def test_a_target_is_probed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    with connect(SIMULATED) as board:
        assert known_probe(board, tmp_path, 0, heard.append).tile == 16
        monkeypatch.setattr(module, "detect_tile", lambda *a, **k: pytest.fail("probed again"))
        assert known_probe(board, tmp_path, 1).tile == 16
    assert [event.text for event in heard if isinstance(event, Note)] == [
        "latency steps every 16 channels on this target"
    ]
    (data,) = tmp_path.rglob("tile.json")
    ((digest, kept),) = json.loads(data.read_text()).items()
    assert kept["slower_than_wider"] == []
    assert (data.parent / f"tile-{digest}.svg").exists()


def test_a_drawing_that_is_missing_is_made_from_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(SIMULATED) as board:
        known_probe(board, tmp_path, 0)
        (drawing,) = tmp_path.rglob("tile-*.svg")
        first = drawing.read_text()
        drawing.unlink()
        monkeypatch.setattr(module, "detect_tile", lambda *a, **k: pytest.fail("probed again"))
        assert known_probe(board, tmp_path, 1).tile == 16
    assert drawing.read_text() == first


def test_the_document_comes_back() -> None:
    probe = sawtooth()
    assert TileProbe.from_json(json.loads(json.dumps(probe.to_json()))) == probe


def test_a_document_of_an_older_version_has_everything_too() -> None:
    probe = sawtooth()
    old = {"tile": probe.tile, "resolved": probe.resolved, "curve": [list(point) for point in probe.curve]}
    assert TileProbe.from_json(old).slower_than_wider == probe.slower_than_wider


def test_a_sawtooth_is_told_with_the_wider_width_that_is_faster() -> None:
    pairs = dict(sawtooth().slower_than_wider)
    assert pairs[13] == 16
    assert pairs[61] == 64
    assert 16 not in pairs
    _, told = probe_sentences(sawtooth())
    assert "13 (than 16)" in told


def test_a_staircase_has_nothing_slower() -> None:
    assert staircase().slower_than_wider == ()
    assert len(probe_sentences(staircase())) == 1


def test_a_flat_curve_is_told_as_such() -> None:
    probe = read_tile(dict.fromkeys(WIDTHS, (1.0, 0.01)))
    assert probe_sentences(probe) == (
        "latency hardly depends on the width on this target; widths go in steps of 8 channels",
    )


class TestSpace:
    """The space of a small network on the simulated device, with a probe of our making."""

    @staticmethod
    def space_after(probe: TileProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[SearchSpace, list[str]]:
        _, _, graph = traced("chain")
        heard: list[Event] = []
        monkeypatch.setattr(module, "detect_tile", lambda *a, **k: probe)
        with connect(SIMULATED) as board:
            space, tile = target_space(graph, board, tmp_path, min_keep=0.1, on_event=heard.append)
        assert tile == probe.tile
        return space, [event.text for event in heard if isinstance(event, Note)]

    def test_widths_slower_than_wider_ones_are_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        curve = {w: (0.05 + 0.01 * w, 0.01) for w in WIDTHS}
        plain, heard = self.space_after(read_tile(curve), tmp_path / "plain", monkeypatch)
        assert not any("left out" in text for text in heard)
        wide = max(plain.groups, key=lambda group: group.units)
        assert wide.units > 8
        curve[5] = (0.05 + 0.01 * 10, 0.01)
        space, heard = self.space_after(read_tile(curve), tmp_path / "toothed", monkeypatch)
        assert "widths left out, since wider ones are faster: 5, 6, 7" in heard
        before, after = (dict(zip(found.names, found.widths, strict=True))[wide.name] for found in (plain, space))
        assert set(before) - set(after) == {5, 6, 7}

    def test_a_given_tile_asks_no_probe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, _, graph = traced("chain")
        monkeypatch.setattr(module, "detect_tile", lambda *a, **k: pytest.fail("probed"))
        with connect(SIMULATED) as board:
            assert target_space(graph, board, tmp_path, tile=2, min_keep=0.5)[1] == 2


class TestModelStep:
    """What latency models round to on a grid of 4."""

    @staticmethod
    def step(found: TileProbe | Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[Event]]:
        def probed(*args: object, **options: object) -> TileProbe:
            if isinstance(found, Exception):
                raise found
            return found

        heard: list[Event] = []
        monkeypatch.setattr(module, "detect_tile", probed)
        with connect(SIMULATED) as board:
            return model_step(board, tmp_path, 4, 0, heard.append), heard

    def test_it_is_the_hardware_s(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        step, heard = self.step(staircase(), tmp_path, monkeypatch)
        assert step == 16
        assert heard == [Note("latency steps every 16 channels on this target, widths every 4")]

    def test_it_is_the_grid_where_no_step_is_seen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.step(read_tile(dict.fromkeys(WIDTHS, (1.0, 0.01))), tmp_path, monkeypatch) == (4, [])

    def test_it_is_the_grid_where_the_probe_cannot_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        step, (caution,) = self.step(NetworkUnfit("no engine"), tmp_path, monkeypatch)
        assert step == 4
        assert isinstance(caution, Caution)


class TestDrawing:
    @staticmethod
    def drawn(probe: TileProbe, tile: int | None) -> ElementTree.Element:
        text = staircase_drawing(probe.curve, tile=tile, slower=dict(probe.slower_than_wider), label="cpu <x> & y")
        return ElementTree.fromstring(text)

    def test_it_is_a_file_of_its_own(self) -> None:
        root = self.drawn(staircase(), 16)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        style = root.find("{*}style")
        assert style is not None
        assert "polyline.budget" in str(style.text)
        text = ElementTree.tostring(root, encoding="unicode")
        assert "href" not in text  # nothing is loaded from elsewhere

    def test_every_width_is_a_dot_and_every_tile_a_line(self) -> None:
        root = self.drawn(staircase(), 16)
        assert len(root.findall(".//{*}circle")) == len(WIDTHS)
        assert len(root.findall(".//{*}polyline[@class='budget']")) == 128 // 16
        titles = [item.text for item in root.findall(".//{*}circle/{*}title")]
        assert "16 channels: 0.0800 ms ± 1.0 %" in titles

    def test_widths_slower_than_wider_ones_stand_out(self) -> None:
        probe = sawtooth()
        root = self.drawn(probe, probe.tile)
        red = root.findall(".//{*}circle[@class='over']")
        assert len(red) == len(probe.non_monotone) > 0
        assert any("13 channels" in str(item[0].text) and "slower than 16" in str(item[0].text) for item in red)

    def test_without_a_tile_there_are_no_lines(self) -> None:
        root = self.drawn(staircase(), None)
        assert root.findall(".//{*}polyline[@class='budget']") == []
        assert any("no steps seen" in str(item.text) for item in root.findall(".//{*}text"))
