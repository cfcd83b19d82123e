"""The measuring loop through the GPU's clock: events of 0.5 us on a virtual device with known disturbances."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

import pytest
from fake_gpu import Gpu, KernelSession

from hwprune.core import statistics
from hwprune.core.comparison import Comparison, compare
from hwprune.core.measurement import Fingerprint, Measurement, Protocol
from hwprune.runtimes._gauge import Reference, calibrate
from hwprune.runtimes._tensorrt.clock import DeviceClock
from hwprune.runtimes._tensorrt.layers import chained_ms
from hwprune.runtimes._timing import TimingLoop

FINGERPRINT = Fingerprint("fake", "fake", 1, "fake", "1", "fp32", 1, 1, "fake")
REFERENCE_US = (3.0,) * 20
GAP_US = 0.8  # between dependent kernels, on the fake device
QUICK = Protocol("test", rounds_min=5, rounds_max=20, laps=12, warmup_laps=1, warmup_s=0.0)
NETWORK_US = (40.0,) * 12  # 0.49 ms
EVERYTHING = {"jitter": 0.004, "wander": 0.004, "spikes": 0.03, "drift": 0.1}


def truth_ms(kernels_us: tuple[float, ...]) -> float:
    return sum(kernel + GAP_US for kernel in kernels_us) / 1e3


class QuietHostClock(DeviceClock):
    """The host's load is real, and not what is tested here."""

    def waited_s(self) -> float:
        return 0.0


class Bench:
    """A loop, its clock and its reference on a GPU that was just set up."""

    def __init__(self, chip: Gpu, *, counters: bool = False, **settings: float) -> None:
        chip.reset()
        self.chip, self.cuda = chip, chip.cuda()
        read = {"throttle": chip.library.fake_throttle_events}
        self.clock = QuietHostClock(
            self.cuda, (lambda: {name: int(f()) for name, f in read.items()}) if counters else dict
        )
        kernel = KernelSession(chip, self.cuda, REFERENCE_US, flips=False)
        calibration = calibrate(kernel, self.clock, limit_s=0.3)
        gauge = Reference(kernel, self.clock, calibration)
        chip.set(**settings)
        self.start_s = chip.now_s()
        self.loop = TimingLoop(gauge, self.clock, reference_ms=truth_ms(REFERENCE_US), fingerprint=FINGERPRINT)

    def measure(
        self, networks: Mapping[str, tuple[float, ...]], protocol: Protocol = QUICK, seed: int = 0
    ) -> dict[str, Measurement]:
        openers = {name: partial(KernelSession, self.chip, self.cuda, kernels) for name, kernels in networks.items()}
        return self.loop.measure(openers, protocol, seed=seed)


def measured(chip: Gpu, seed: int = 0, protocol: Protocol = QUICK, **settings: float) -> Measurement:
    return Bench(chip, seed=seed, **settings).measure({"net": NETWORK_US}, protocol, seed)["net"]


@pytest.mark.parametrize("kernels_us", [(5.0,) * 5, (30.0,) * 4, (40.0,) * 25, (200.0,) * 50], ids=len)
def test_gpu_time_is_the_devices_and_wall_time_is_a_request(chip: Gpu, kernels_us: tuple[float, ...]) -> None:
    cuda = chip.cuda()
    clock = DeviceClock(cuda)
    session = KernelSession(chip, cuda, kernels_us)
    laps = [clock.time(session.run) for _ in range(40)]
    assert statistics.mean([lap.time_ms for lap in laps]) == pytest.approx(truth_ms(kernels_us), rel=0.003)
    overhead_us = 3.5 + 1.0 + 2 * 0.3  # launch the graph, wait for it, two calls
    assert laps[0].wall_ms == pytest.approx(truth_ms(kernels_us) + overhead_us / 1e3, abs=1e-3)


def test_plain_enqueueing_of_small_kernels_is_bound_by_the_host(chip: Gpu) -> None:
    cuda = chip.cuda()
    clock = DeviceClock(cuda)
    graph, plain = (KernelSession(chip, cuda, (0.5,) * 40, graph=graph) for graph in (True, False))
    by_graph, by_host = (statistics.mean([clock.time(item.run).time_ms for _ in range(20)]) for item in (graph, plain))
    assert by_graph == pytest.approx(truth_ms((0.5,) * 40), rel=0.01)
    assert by_host == pytest.approx(40 * 2.5e-3, rel=0.1)  # a launch takes the host 2.5 us


def test_the_slope_of_chains_sees_through_every_constant(chip: Gpu) -> None:
    """A kernel of 2.0 us with a gap of 0.8 us: 2.8 us inside a network; alone in a graph it waits for launches."""
    cuda = chip.cuda()
    layer = KernelSession(chip, cuda, (2.0,))
    alone = statistics.mean([DeviceClock(cuda).time(layer.run).time_ms for _ in range(20)])
    assert chained_ms(layer, cuda) == pytest.approx(2.8e-3, rel=0.01)
    assert alone > 1.25 * 2.8e-3
    chip.set(capture_error=900)
    assert chained_ms(KernelSession(chip, cuda, (30.0,) * 3, graph=False), cuda) == pytest.approx(92.4e-3, rel=0.01)


@pytest.mark.parametrize("kernels_us", [(2.0,), (3.0,) * 10], ids=len)
def test_the_slope_sees_through_a_launch_that_grows_with_the_graph(chip: Gpu, kernels_us: tuple[float, ...]) -> None:
    cuda = chip.cuda()
    chip.set(graph_node_ns=700)
    layer = KernelSession(chip, cuda, kernels_us)
    assert chained_ms(layer, cuda) == pytest.approx(truth_ms(kernels_us), rel=0.01)


NOISE: dict[str, dict[str, float]] = {
    "nothing": {},
    "jitter": {"jitter": 0.005},
    "drift": {"jitter": 0.005, "drift": 0.1, "drift_period_s": 5.0},
    "autocorrelated": {"jitter": 0.003, "wander": 0.006},
    "spikes": {"jitter": 0.005, "spikes": 0.03},
    "coarse events": {"jitter": 0.005, "resolution_ns": 1000},
}


@pytest.mark.parametrize("kind", NOISE)
def test_unbiased_through_events_under(kind: str, chip: Gpu) -> None:
    truth = truth_ms(NETWORK_US)
    errors = [measured(chip, seed, **NOISE[kind]).latency_ms / truth - 1 for seed in range(20)]
    assert abs(statistics.mean(errors)) < 0.003
    assert statistics.standard_deviation(errors) < 0.005


def test_intervals_through_events_cover_the_truth(chip: Gpu) -> None:
    """300 sessions with all disturbances at once, each stopped at its 1 % target."""
    truth = truth_ms(NETWORK_US)
    found = [measured(chip, seed, **EVERYTHING) for seed in range(300)]
    covered = sum(item.ci_ms[0] <= truth <= item.ci_ms[1] for item in found) / len(found)
    assert 0.90 <= covered <= 0.97
    assert abs(statistics.mean([item.latency_ms for item in found]) / truth - 1) < 0.003
    assert sum(item.converged for item in found) >= 0.99 * len(found)


def compared(chip: Gpu, ratio: float, count: int) -> list[Comparison]:
    networks = {"a": NETWORK_US, "b": tuple((kernel + GAP_US) * ratio - GAP_US for kernel in NETWORK_US)}
    pairs = (Bench(chip, seed=seed, **EVERYTHING).measure(networks, seed=seed) for seed in range(count))
    return [compare(item["a"], item["b"]) for item in pairs]


def test_equal_engines_are_rarely_called_different(chip: Gpu) -> None:
    found = [item.verdict for item in compared(chip, 1.0, 60)]
    assert 1 - found.count("no difference shown") / len(found) <= 0.08


def test_two_percent_between_engines_are_found(chip: Gpu) -> None:
    found = [item.verdict for item in compared(chip, 1.02, 40)]
    assert found.count("slower") >= 38
    assert "faster" not in found


def test_rounds_at_a_lower_clock_are_void(chip: Gpu) -> None:
    """The clock drops by 20 % for a while; what is left is within 0.5 %."""
    bench = Bench(chip)
    begin = bench.start_s + 0.05
    chip.set(throttle_rise=0.25, throttle_from_s=begin, throttle_to_s=begin + 0.6)
    found = bench.measure({"net": NETWORK_US}, Protocol(laps=12, rounds_min=8))["net"]
    slow = [
        item for item in found.rounds if statistics.median(item.before_ms + item.after_ms) > 1.1 * found.reference_ms
    ]
    assert slow
    assert all(item.void == "disturbed" for item in slow)
    assert found.latency_ms == pytest.approx(truth_ms(NETWORK_US), rel=0.005)


def test_rounds_in_which_the_gpu_counted_throttling_are_void(chip: Gpu) -> None:
    """A counter that moved voids the round even where the clock shows nothing."""
    bench = Bench(chip, counters=True)
    begin = bench.start_s + 0.02
    chip.set(throttle_rise=1e-9, throttle_from_s=begin, throttle_to_s=begin + 0.2)
    found = bench.measure({"net": NETWORK_US}, Protocol(laps=12, rounds_min=8))["net"]
    assert set(found.void_rounds) == {"throttle changed"}
    assert found.round_count >= 8
    assert found.latency_ms == pytest.approx(truth_ms(NETWORK_US), rel=0.003)


@pytest.mark.parametrize("seed", range(5))
def test_engines_that_flip_between_two_speeds_are_bimodal(seed: int, chip: Gpu) -> None:
    found = measured(chip, seed, jitter=0.003, flip_rise=0.08, flip_s=0.1)
    assert found.bimodal
    assert not found.converged
    assert not measured(chip, seed, jitter=0.003).bimodal


def test_a_timer_that_stands_still_voids_its_round(chip: Gpu) -> None:
    bench = Bench(chip)
    chip.set(dead_from_s=bench.start_s + 0.03, dead_to_s=bench.start_s + 0.035)
    found = bench.measure({"net": NETWORK_US})["net"]
    assert found.void_rounds == {"clock stood still": 1}
    assert found.latency_ms == pytest.approx(truth_ms(NETWORK_US), rel=0.003)


def test_same_seed_same_laps(chip: Gpu) -> None:
    first, second, other = (json.dumps(measured(chip, seed, **EVERYTHING).to_json()) for seed in (7, 7, 8))
    assert first == second != other


def test_measuring_leaves_nothing_on_the_gpu(chip: Gpu) -> None:
    bench = Bench(chip)
    before = chip.live()
    bench.measure({"a": NETWORK_US, "b": NETWORK_US})
    assert chip.live() == before
    bench.clock.close()
    bench.cuda.close()
    assert chip.live() == {"memory": 0, "streams": 0, "events": 0, "graphs": 0, "executables": 1}  # the reference's
