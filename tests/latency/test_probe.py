"""The tile is read off a curve: staircases, sawteeth, flat curves and noise."""

from __future__ import annotations

import math
from random import Random

import pytest

from hwprune.core.measurement import Target
from hwprune.devices import connect
from hwprune.latency.probe import WIDTHS, detect_tile, read_tile


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
