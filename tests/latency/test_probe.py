"""The tile is read off a curve: staircases, sawteeth, flat curves and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from hwprune.core.measurement import Measurement, Target
from hwprune.core.widths import ChannelGroup, SearchSpace
from hwprune.devices import connect
from hwprune.latency.probe import WIDTHS, detect_tile, read_tile, worthwhile


def _curve(tile: int, *, noise: float = 0.0, seed: int = 0) -> dict[int, tuple[float, float]]:
    rng = Random(seed)
    return {w: ((0.05 + 0.03 * math.ceil(w / tile)) * (1 + noise * rng.gauss(0, 1)), 0.01) for w in WIDTHS}


@pytest.mark.parametrize("tile", [1, 4, 8, 16, 32, 64])
def test_staircases(tile: int) -> None:
    probe = read_tile(_curve(tile))
    assert probe.tile == tile
    assert probe.resolved
    assert probe.non_monotone == ()


@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_move_the_tile(seed: int) -> None:
    assert read_tile(_curve(16, noise=0.03, seed=seed)).tile == 16


def test_one_disturbed_measurement_does_not_move_the_tile() -> None:
    curve = _curve(16)
    curve[64] = (curve[64][0] * 1.5, 0.01)
    assert read_tile(curve).tile == 16


def test_a_sawtooth_is_named() -> None:
    curve = {w: (0.05 + 0.002 * w + (0.05 if w % 8 else 0.0), 0.01) for w in WIDTHS}
    probe = read_tile(curve)
    assert probe.tile == 8
    assert 61 in probe.non_monotone
    assert 64 not in probe.non_monotone


def test_a_sawtooth_whose_halves_pay_too_keeps_them() -> None:
    """As ncnn on AVX-512: multiples of 8 are packed, and eight channels less are really faster."""
    probe = read_tile({w: (0.05 + 0.002 * w + (0.02 if w % 8 else 0.0), 0.01) for w in WIDTHS})
    assert probe.tile == 8


def test_only_the_tips_of_teeth_are_good() -> None:
    probe = read_tile({w: (0.05 + 0.002 * w + (0.05 if w % 16 else 0.0), 0.01) for w in WIDTHS})
    assert probe.tile == 16


def test_a_width_is_not_called_slower_on_a_disturbed_measurement() -> None:
    curve = _curve(16)
    curve[64] = (curve[64][0] * 1.5, 0.4)
    assert read_tile(curve).non_monotone == ()
    curve[64] = (curve[64][0], 0.01)
    assert 64 in read_tile(curve).non_monotone


def test_slow_widths_leave_a_space_that_has_the_wider_one() -> None:
    curve = _curve(8)
    curve[88] = (curve[96][0] * 1.3, 0.01)
    probe = read_tile(curve)
    assert 96 in probe.faster_and_wider(88)
    assert dict(probe.slower_than_wider)[88] == 89
    groups = tuple(ChannelGroup(name, units) for name, units in (("wide", 128), ("narrow", 92), ("dense", 88)))
    space = SearchSpace(groups, ((80, 88, 96, 128), (80, 88, 92), (80, 88)))
    assert worthwhile(space, probe).widths == ((80, 96, 128), (80, 92), (80, 88))


def test_widths_between_probed_ones_are_as_slow_as_the_narrower() -> None:
    curve = _curve(1)
    curve[13] = (curve[20][0], 0.01)
    probe = read_tile(curve)
    space = SearchSpace((ChannelGroup("channels", 32),), ((11, 12, 13, 14, 15, 16, 17, 32),))
    assert worthwhile(space, probe).widths == ((11, 12, 16, 17, 32),)
    assert dict(probe.slower_than_wider) == {13: 16}
    assert probe.faster_and_wider(200) == ()


def test_channels_count_where_units_have_several() -> None:
    curve = _curve(8)
    curve[88] = (curve[96][0] * 1.3, 0.01)
    space = SearchSpace((ChannelGroup("heads", 12, unit_channels=8),), ((10, 11, 12),))
    assert worthwhile(space, read_tile(curve)).widths == ((10, 12),)


def _slowed(found: Measurement, factor: float, *, scatter: float = 0.0) -> Measurement:
    """The same measurement, every lap longer, with laps that drift apart by `scatter`."""
    (done,) = found.rounds
    laps_ms = tuple(lap * (factor + scatter * place) for place, lap in enumerate(done.laps_ms))
    return replace(found, rounds=(replace(done, laps_ms=laps_ms),))


class TestAgain:
    """What is timed again, on the simulated device with measurements that we tamper with."""

    @staticmethod
    def probe(monkeypatch: pytest.MonkeyPatch, tamper: Callable[[int, dict[str, Measurement]], None]) -> list[int]:
        """How many networks were measured in each call; the probe is checked to have a tile of 16."""
        asked: list[int] = []
        with connect(Target("simulated", "simulated")) as board:
            plain = board.measure

            def measure(models: Mapping[str, bytes], **options: Any) -> dict[str, Measurement]:
                found = plain(models, **options)
                tamper(len(asked), found)
                asked.append(len(models))
                return found

            monkeypatch.setattr(board, "measure", measure)
            probe = detect_tile(board)
        assert probe.tile == 16
        assert max(half for _, _, half in probe.curve) < 0.05
        asked.append(len(probe.non_monotone))
        return asked

    def test_a_disturbed_width(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def tamper(call: int, found: dict[str, Measurement]) -> None:
            if call == 0:
                found["64"] = _slowed(found["64"], 1.0, scatter=1.0)

        assert self.probe(monkeypatch, tamper) == [len(WIDTHS), 1, 0]

    def test_a_width_that_was_slow_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def tamper(call: int, found: dict[str, Measurement]) -> None:
            if call == 0:
                found["40"] = _slowed(found["40"], 1.3)

        assert self.probe(monkeypatch, tamper) == [len(WIDTHS), 1, 0]

    def test_a_width_that_is_slow_every_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def tamper(call: int, found: dict[str, Measurement]) -> None:
            found["40"] = _slowed(found["40"], 1.3)

        assert self.probe(monkeypatch, tamper) == [len(WIDTHS), 1, 1, 1]


def test_a_flat_curve_is_not_resolved() -> None:
    probe = read_tile({w: (1.0 + 0.001 * w, 0.01) for w in WIDTHS})
    assert not probe.resolved
    assert probe.tile == 8


def test_the_curve_is_kept() -> None:
    probe = read_tile(_curve(16))
    assert [width for width, _, _ in probe.curve] == list(WIDTHS)
    assert probe.curve[0] == (1, pytest.approx(0.08), 0.01)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_simulated_device_has_tiles_of_16(kernel: int) -> None:
    with connect(Target("simulated", "simulated")) as board:
        probe = detect_tile(board, kernel=kernel, seed=kernel)
    assert probe.tile == 16
    assert probe.resolved
    assert probe.non_monotone == ()
