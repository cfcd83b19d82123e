"""The measuring loop on a machine with a virtual clock and known disturbances (measurement.md, what to test)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from hwprune.core import statistics
from hwprune.core.comparison import Comparison, compare
from hwprune.core.errors import DeviceError
from hwprune.core.measurement import Fingerprint, Measurement, Protocol
from hwprune.runtimes._base import AbstractSession
from hwprune.runtimes._gauge import AnchorGauge, Calibration, Reference, calibrate
from hwprune.runtimes._machine import Disturbances, Machine, VirtualClock
from hwprune.runtimes._timing import TimingLoop

FINGERPRINT = Fingerprint("fake", "fake", 1, "fake", "1", "fp32", 1, 1, "fake")
REFERENCE_MS = 0.05
QUICK = Protocol("test", rounds_min=5, rounds_max=20, laps=12, warmup_laps=1, warmup_s=0.0)


class FakeSession(AbstractSession):
    """A network that takes `ms` (give or take `scatter`) undisturbed, and `sensitivity` of the machine's contention."""

    alive = 0

    def __init__(
        self, machine: Machine, ms: float, sensitivity: float = 1.0, *, flips: bool = True, scatter: float = 0.0
    ) -> None:
        self._machine, self._ms, self._sensitivity, self._flips = machine, ms, sensitivity, flips
        self._scatter, self._rng = scatter, Random(round(1e6 * ms))
        FakeSession.alive += 1

    def run(self) -> None:
        ms = self._ms * (1 + self._scatter * self._rng.gauss(0, 1))
        self._machine.run(ms, sensitivity=self._sensitivity, flips=self._flips)

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return []

    def close(self) -> None:
        FakeSession.alive -= 1


def measure(
    subjects: Mapping[str, float],
    *,
    protocol: Protocol = QUICK,
    seed: int = 0,
    sensitivity: float = 1.0,
    scatter: Mapping[str, float] = MappingProxyType({}),
    **what: Any,
) -> dict[str, Measurement]:
    """Measure networks of these true latencies, which `scatter` of themselves, on a machine disturbed in this way."""
    machine = Machine(Disturbances(seed=seed, **what))
    clock = VirtualClock(machine)
    kernel = FakeSession(machine, REFERENCE_MS, flips=False)
    gauge = Reference(kernel, clock, Calibration(0.99 * REFERENCE_MS, REFERENCE_MS, 0.02))
    loop = TimingLoop(gauge, clock, reference_ms=REFERENCE_MS, fingerprint=FINGERPRINT)
    openers = {
        name: partial(FakeSession, machine, ms, sensitivity, scatter=scatter.get(name, 0.0))
        for name, ms in subjects.items()
    }
    return loop.measure(openers, protocol, seed=seed)


NOISE: dict[str, dict[str, float]] = {
    "jitter": {"jitter": 0.005},
    "drift": {"jitter": 0.005, "drift": 0.1, "drift_period_s": 5.0},
    "autocorrelated": {"jitter": 0.003, "wander": 0.006},
    "spikes": {"jitter": 0.005, "spikes": 0.03},
    "contention": {"jitter": 0.005, "contention": 0.6},
}


@pytest.mark.parametrize("kind", NOISE)
def test_unbiased_under(kind: str) -> None:
    errors = [
        measure({"net": 1.0}, seed=seed, sensitivity=0.4, **NOISE[kind])["net"].latency_ms - 1 for seed in range(25)
    ]
    assert abs(statistics.mean(errors)) < 0.003
    assert statistics.standard_deviation(errors) < 0.005


@pytest.mark.parametrize("scatter", [0.02, 0.05])
def test_a_network_that_scatters_of_itself_reads_its_median(scatter: float) -> None:
    """Its laps are long as often as short, which is no disturbance: nothing may be taken off."""
    found = [
        measure({"net": 1 + seed / 1e5}, protocol=Protocol(), seed=seed, scatter={"net": scatter}, jitter=0.002)["net"]
        for seed in range(60)
    ]
    errors = [item.latency_ms / (1 + seed / 1e5) - 1 for seed, item in enumerate(found)]
    assert abs(statistics.mean(errors)) < 0.003
    covered = sum(item.ci_ms[0] <= 1 + seed / 1e5 <= item.ci_ms[1] for seed, item in enumerate(found))
    assert covered >= 0.85 * len(found)


def test_the_steadier_of_two_equal_networks_is_not_called_slower() -> None:
    protocol = Protocol(rounds_min=10, rounds_max=10)
    pairs = (
        measure({"a": 0.8, "b": 0.8 + seed / 1e6}, protocol=protocol, seed=seed, scatter={"b": 0.03}, jitter=0.003)
        for seed in range(60)
    )
    verdicts = [compare(item["a"], item["b"]).verdict for item in pairs]
    assert verdicts.count("no difference shown") >= 0.85 * len(verdicts)


def test_intervals_cover_the_truth() -> None:
    """300 sessions with all disturbances at once, each stopped at its 1 % target."""
    what = {"jitter": 0.004, "wander": 0.004, "spikes": 0.03, "drift": 0.1}
    found = [measure({"net": 1.0}, seed=seed, **what)["net"] for seed in range(300)]
    covered = sum(item.ci_ms[0] <= 1.0 <= item.ci_ms[1] for item in found) / len(found)
    assert 0.90 <= covered <= 0.97
    assert abs(statistics.mean([item.latency_ms for item in found]) - 1) < 0.003
    assert sum(item.converged for item in found) >= 0.99 * len(found)


def verdicts(truth: float, count: int) -> list[Comparison]:
    what = {"jitter": 0.005, "wander": 0.004, "spikes": 0.03, "drift": 0.1}
    pairs = (measure({"a": 0.8, "b": 0.8 * truth}, seed=seed, **what) for seed in range(count))
    return [compare(item["a"], item["b"]) for item in pairs]


def test_equal_networks_are_rarely_called_different() -> None:
    found = [item.verdict for item in verdicts(1.0, 300)]
    assert 1 - found.count("no difference shown") / 300 <= 0.08


def test_two_percent_are_found() -> None:
    found = [item.verdict for item in verdicts(1.02, 100)]
    assert found.count("slower") >= 95
    assert "faster" not in found


def test_every_throttled_round_is_void() -> None:
    measured = measure(
        {"net": 1.0},
        protocol=Protocol(laps=12, rounds_min=8),
        throttle_rise=0.3,
        throttle_from_s=0.1,
        throttle_to_s=0.9,
    )["net"]
    throttled = [
        item for item in measured.rounds if statistics.median(item.before_ms + item.after_ms) > 1.2 * REFERENCE_MS
    ]
    assert throttled
    assert all(item.void == "disturbed" for item in throttled)
    assert measured.latency_ms == pytest.approx(1.0, abs=0.003)


def test_a_dead_round_is_void_and_repeated() -> None:
    measured = measure({"net": 1.0}, dead_from_s=0.1, dead_to_s=0.11)["net"]
    assert measured.void_rounds == {"clock stood still": 1}
    assert measured.round_count >= 5
    assert measured.latency_ms == pytest.approx(1.0, abs=0.003)


def test_a_clock_that_stands_still_is_an_error() -> None:
    machine = Machine(Disturbances(dead_to_s=100.0))
    with pytest.raises(DeviceError, match="clock of this device stands still: the reference kernel reads 0 ms"):
        calibrate(FakeSession(machine, REFERENCE_MS), VirtualClock(machine))


def test_clock_flips_are_called_bimodal() -> None:
    measured = measure({"net": 1.0}, flip_rise=0.08, flip_s=0.1)["net"]
    assert measured.bimodal
    assert "bimodal" in measured.warnings
    assert not measured.converged


def test_lasting_contention_gives_a_number_that_is_too_high_and_says_so() -> None:
    """When no moment is quiet, the ratio to a kernel that suffers more would be 30 % too low; it must not be used."""
    machine = Machine(Disturbances(throttle_rise=0.4, throttle_from_s=0.3, throttle_to_s=1e6))
    clock = VirtualClock(machine)
    kernel = FakeSession(machine, REFERENCE_MS)
    gauge = Reference(kernel, clock, calibrate(kernel, clock))
    loop = TimingLoop(gauge, clock, reference_ms=REFERENCE_MS, fingerprint=FINGERPRINT)
    machine.now_ms = 400.0
    measured = loop.measure({"net": lambda: FakeSession(machine, 1.0)}, Protocol.quick())["net"]
    assert set(measured.void_rounds) == {"disturbed"}
    assert "all_rounds_void" in measured.warnings
    assert measured.latency_ms == pytest.approx(1.4, rel=0.01)


def test_a_clock_that_stays_slower_is_accepted_after_a_minute() -> None:
    machine = Machine(Disturbances())
    clock = VirtualClock(machine)
    kernel = FakeSession(machine, 1.1 * REFERENCE_MS)
    gauge = Reference(kernel, clock, Calibration(REFERENCE_MS, REFERENCE_MS, 0.0))
    gauge.time_ms()
    assert gauge.floor_ms == REFERENCE_MS
    for second in range(70):
        machine.now_ms = 1e3 * second
        for _ in range(3):
            gauge.time_ms()
    assert gauge.floor_ms == pytest.approx(1.1 * REFERENCE_MS, rel=0.02)


def test_calibration_finds_the_quiet_level_under_contention() -> None:
    for seed in range(10):
        machine = Machine(Disturbances(seed=seed, jitter=0.005, contention=0.8))
        kernel = FakeSession(machine, REFERENCE_MS)
        found = calibrate(kernel, VirtualClock(machine))
        assert found.typical_ms == pytest.approx(REFERENCE_MS, rel=0.01)
        assert found.floor_ms <= found.typical_ms


def test_same_seed_same_result() -> None:
    first, second = (
        json.dumps([item.to_json() for item in measure({"a": 1.0, "b": 2.0}, seed=7, spikes=0.03).values()])
        for _ in range(2)
    )
    assert first == second
    assert first != json.dumps([item.to_json() for item in measure({"a": 1.0, "b": 2.0}, seed=8, spikes=0.03).values()])


def test_a_sample_takes_one_session_at_a_time() -> None:
    alive = []
    machine = Machine(Disturbances())
    clock = VirtualClock(machine)
    kernel = FakeSession(machine, REFERENCE_MS)
    gauge = Reference(kernel, clock, calibrate(kernel, clock))
    loop = TimingLoop(gauge, clock, reference_ms=REFERENCE_MS, fingerprint=FINGERPRINT)
    before = FakeSession.alive
    openers = {str(place): (lambda: FakeSession(machine, 1.0)) for place in range(50)}
    loop.measure(openers, Protocol.sample(), on_round=lambda name, done: alive.append(FakeSession.alive - before))
    assert max(alive) == 0  # closed again by the time its round is reported
    assert FakeSession.alive == before


def test_a_sample_of_a_quiet_network_is_short() -> None:
    measured = measure({"net": 1.0}, protocol=Protocol.sample())["net"]
    assert measured.lap_count == 8
    assert measured.p99_ms is None


def test_sessions_are_closed_after_an_error() -> None:
    machine = Machine(Disturbances())
    clock = VirtualClock(machine)
    kernel = FakeSession(machine, REFERENCE_MS)
    loop = TimingLoop(
        Reference(kernel, clock, calibrate(kernel, clock)), clock, reference_ms=REFERENCE_MS, fingerprint=FINGERPRINT
    )
    before = FakeSession.alive

    def interrupt(name: str, done: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.measure({"net": lambda: FakeSession(machine, 1.0)}, Protocol.quick(), on_round=interrupt)
    assert FakeSession.alive == before


class CountingClock(VirtualClock):
    """A wall clock whose process waits for its core, on a device that counts throttle events from one time on."""

    name = "wall"

    def __init__(self, machine: Machine, *, waiting: float = 0.0, throttled_from_s: float = 1e9) -> None:
        super().__init__(machine)
        self._waiting, self._throttled_from_s = waiting, throttled_from_s

    def waited_s(self) -> float:
        return self._waiting * self.now_s()

    def counters(self) -> Mapping[str, int]:
        return {"throttle": int(1e3 * max(0.0, self.now_s() - self._throttled_from_s))}


def measure_with(clock: CountingClock, machine: Machine) -> Measurement:
    kernel = FakeSession(machine, REFERENCE_MS)
    gauge = Reference(kernel, clock, Calibration(REFERENCE_MS, REFERENCE_MS, 0.0))
    loop = TimingLoop(gauge, clock, reference_ms=REFERENCE_MS, fingerprint=FINGERPRINT)
    return loop.measure({"net": lambda: FakeSession(machine, 1.0)}, Protocol.quick())["net"]


def test_rounds_by_the_wall_clock_that_waited_are_void() -> None:
    machine = Machine(Disturbances())
    measured = measure_with(CountingClock(machine, waiting=0.2), machine)
    assert set(measured.void_rounds) == {"preempted"}
    assert all(item.waited == pytest.approx(0.2, abs=1e-3) for item in measured.rounds)


def test_rounds_in_which_the_device_counted_throttling_are_void() -> None:
    machine = Machine(Disturbances())
    measured = measure_with(CountingClock(machine, throttled_from_s=0.08), machine)
    assert set(measured.void_rounds) == {"throttle changed"}
    assert not measured.rounds[0].void


def test_a_device_that_throttles_all_the_time_is_not_timed() -> None:
    machine = Machine(Disturbances())
    with pytest.raises(DeviceError, match=r"'net' cannot be timed: each of \d+ rounds is void \(throttle changed\)"):
        measure_with(CountingClock(machine, throttled_from_s=0.0), machine)


def test_a_hopeless_session_ends() -> None:
    machine = Machine(Disturbances())
    measured = measure_with(CountingClock(machine, waiting=0.9), machine)
    assert len(measured.rounds) <= 2 * measured.protocol.rounds_max + 1


class CountingSession(FakeSession):
    """Knows at the end how often it has run."""

    runs = 0

    def run(self) -> None:
        self.runs += 1
        super().run()

    @property
    def facts(self) -> Mapping[str, str]:
        return {"runs": str(self.runs)}


def test_facts_are_those_of_the_end() -> None:
    machine = Machine(Disturbances(seed=0))
    clock = VirtualClock(machine)
    gauge = Reference(FakeSession(machine, REFERENCE_MS), clock, Calibration(0.99 * REFERENCE_MS, REFERENCE_MS, 0.02))
    loop = TimingLoop(gauge, clock, reference_ms=REFERENCE_MS, fingerprint=FINGERPRINT)
    session = CountingSession(machine, 1.0)
    found = loop.measure({"net": lambda: session}, QUICK)["net"]
    assert found.facts == (("runs", str(session.runs)),)
    assert session.runs > found.lap_count > 0


def beside(subjects: Mapping[str, float], anchor_ms: float, *, seed: int = 0, **what: Any) -> dict[str, Measurement]:
    """Measure networks in milliseconds in which a network that takes `anchor_ms` here takes 1; all suffer alike."""
    machine = Machine(Disturbances(seed=seed, **what))
    clock = VirtualClock(machine)
    gauge = AnchorGauge(FakeSession(machine, anchor_ms), clock)
    loop = TimingLoop(gauge, clock, reference_ms=1.0, fingerprint=FINGERPRINT)
    openers = {name: partial(FakeSession, machine, ms) for name, ms in subjects.items()}
    return loop.measure(openers, QUICK, seed=seed)


@pytest.mark.parametrize("anchor_ms", [0.3, 0.8, 5.0])
def test_beside_an_anchor_the_ratio_is_measured(anchor_ms: float) -> None:
    found = beside({"a": 0.6, "b": 3.0}, anchor_ms, jitter=0.003)
    assert found["a"].latency_ms == pytest.approx(0.6 / anchor_ms, rel=0.003)
    assert found["b"].latency_ms == pytest.approx(3.0 / anchor_ms, rel=0.003)
    assert found["a"].anchored
    assert found["a"].slowdown == pytest.approx(anchor_ms, rel=0.01)
    assert Measurement.from_json(json.loads(json.dumps(found["a"].to_json()))) == found["a"]


class ColdSession(FakeSession):
    """Takes twice as long in its first run after another network's, and a tenth longer in the second."""

    def __init__(self, machine: Machine, ms: float, runs: list[object]) -> None:
        super().__init__(machine, ms)
        self._runs = runs

    def run(self) -> None:
        super().run()
        since = next((place for place, session in enumerate(reversed(self._runs)) if session is not self), 9)
        if since < 2:
            self._machine.run((1.0, 0.1)[since] * self._ms, sensitivity=1.0, flips=True)
        self._runs.append(self)


@pytest.mark.parametrize("anchor_ms", [0.4, 1.0, 2.5])
def test_beside_an_anchor_networks_are_warm(anchor_ms: float) -> None:
    """One whose weights the anchor pushes out of the caches takes what it takes alone."""
    machine, runs = Machine(Disturbances(seed=0)), list[object]()
    clock = VirtualClock(machine)
    gauge = AnchorGauge(ColdSession(machine, anchor_ms, runs), clock)
    loop = TimingLoop(gauge, clock, reference_ms=1.0, fingerprint=FINGERPRINT)
    openers = {"cold": lambda: ColdSession(machine, 0.44, runs), "hardened": lambda: FakeSession(machine, 0.44)}
    for found in loop.measure(openers, QUICK).values():
        assert found.latency_ms == pytest.approx(0.44 / anchor_ms, rel=0.002)


def test_what_slows_networks_and_not_the_reference_kernel_cancels() -> None:
    """Networks half as fast again, in stretches of 30 ms that the reference kernel does not see."""
    what = {"jitter": 0.003, "flip_rise": 0.5, "flip_s": 0.03}
    kernel = [measure({"a": 0.8}, seed=seed, **what)["a"] for seed in range(10)]
    anchor = [beside({"a": 0.8}, 1.0, seed=seed, **what)["a"] for seed in range(10)]
    assert statistics.mean([item.scatter for item in kernel]) > 0.04
    assert statistics.mean([item.scatter for item in anchor]) < 0.02
    assert all(item.latency_ms == pytest.approx(0.8, rel=0.05) for item in anchor)
    assert statistics.median([item.latency_ms for item in anchor]) == pytest.approx(0.8, rel=0.005)
    assert not any("unsteady_clock" in item.warnings for item in anchor)


def test_rounds_of_two_sessions_are_one_measurement() -> None:
    first, second = (beside({"a": 0.8, "b": 0.5}, 1.0, seed=seed, jitter=0.01) for seed in (0, 1))
    joined = {name: first[name].joined(second[name]) for name in first}
    assert joined["a"].round_count == first["a"].round_count + second["a"].round_count
    assert joined["a"].samples_ms == first["a"].samples_ms + second["a"].samples_ms
    assert len({item.index for item in joined["a"].rounds}) == joined["a"].round_count
    assert compare(joined["a"], joined["b"]).ratio == pytest.approx(0.5 / 0.8, rel=0.01)
