"""Several runtimes in one run: known ratios on a virtual machine, what fails stays alone, and two real runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import pytest

from hwprune.core.errors import DeviceError, HwpruneError, UsageError
from hwprune.core.measurement import Protocol, Target
from hwprune.devices import together
from hwprune.devices.reference import REFERENCE_NAME
from hwprune.devices.together import Pair, Together, measure_together, split_runtimes
from hwprune.runtimes._base import AbstractClock, AbstractRuntime, AbstractSession
from hwprune.runtimes._clocks import ThreadCpuClock, WallClock
from hwprune.runtimes.simulated import SimulatedRuntime
from hwprune.testing.runtimes import conv_net

MODELS = {"wide": conv_net(64), "narrow": conv_net(32)}
FAST = SimulatedRuntime(jitter=0.003)


def sharing(**options: float) -> SimulatedRuntime:
    """Another simulated runtime on the machine of `FAST`: one virtual clock for both."""
    runtime = SimulatedRuntime(**options)
    object.__setattr__(runtime, "_machine", FAST.machine)
    return runtime


class Broken(SimulatedRuntime):
    """Fails in the way that `how` says."""

    how: ClassVar[str] = ""
    closed: ClassVar[list[str]] = []

    def check(self, target: Target) -> None:
        if self.how == "missing":
            raise DeviceError("broken is not installed", hint="pip install broken")

    def open(self, model: bytes, target: Target) -> AbstractSession:  # type: ignore[override]
        if self.how == "narrow" and model == MODELS["narrow"]:
            raise UsageError("broken cannot load the model")
        if self.how == "library":
            raise RuntimeError("deep inside\nof a library")
        return Odd(super().open(model, target), wrong=self.how == "wrong")


class Odd(AbstractSession):
    def __init__(self, session: AbstractSession, *, wrong: bool) -> None:
        self._session, self._wrong = session, wrong

    def run(self) -> None:
        self._session.run()

    def infer(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [values * 1.5 if self._wrong else values for values in self._session.infer(inputs)]

    def close(self) -> None:
        Broken.closed.append("closed")


def broken(how: str) -> Broken:
    runtime = type("Broken", (Broken,), {"how": how})()
    object.__setattr__(runtime, "_machine", FAST.machine)
    return runtime


Run = Callable[..., Together]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Measure on runtimes made here, by name."""

    def measure(models: Mapping[str, bytes] = MODELS, /, **runtimes: AbstractRuntime) -> Together:
        monkeypatch.setattr(together, "runtime_of", lambda target: runtimes[target.runtime])
        monkeypatch.setattr(together, "prepare", lambda model, target: model)
        targets = [Target(device="simulated", runtime=name) for name in runtimes]
        return measure_together(models, targets, protocol=Protocol.default())

    return measure


class TestRatios:
    def test_the_ratio_is_that_of_the_speeds(self, run: Run) -> None:
        slow = sharing(macs_per_ms=2e7, bytes_per_ms=1e7, overhead_us=4.0)
        found = run(simulated=FAST, slow=slow)
        assert list(found.measurements) == [Pair(m, r) for m in ("wide", "narrow") for r in ("simulated", "slow")]
        first, second, *columns = found.comparisons()
        assert (first.baseline, first.subject) == ("wide on simulated", "wide on slow")
        assert second.subject == "narrow on slow"
        for item in (first, second):
            assert item.ratio == pytest.approx(2.0, rel=0.005)
            assert item.ci[0] <= 2.0 * 1.003
            assert item.ci[1] >= 2.0 * 0.997
        assert [(item.baseline, item.subject) for item in columns] == [
            ("wide on simulated", "narrow on simulated"),
            ("wide on slow", "narrow on slow"),
        ]
        assert all(item.verdict == "faster" for item in columns)

    def test_every_measurement_is_of_its_runtime_on_one_reference(self, run: Run) -> None:
        found = run(simulated=FAST, slow=sharing(macs_per_ms=2e7))
        prints = {pair.runtime: item.fingerprint for pair, item in found.measurements.items()}
        assert dict(prints["simulated"].flags)["macs_per_ms"] == "4e+07"
        assert dict(prints["slow"].flags)["macs_per_ms"] == "2e+07"
        assert {dict(item.flags)["reference"] for item in prints.values()} == {f"{REFERENCE_NAME} in simulated"}
        assert len({item.reference_ms for item in found.measurements.values()}) == 1
        assert all(item.simulated for item in found.measurements.values())
        assert all(seconds >= 0 for seconds in found.build_s.values())

    def test_the_reference_kernel_runs_in_onnxruntime_where_it_can(self, run: Run) -> None:
        found = run(simulated=sharing(macs_per_ms=2e7), onnxruntime=FAST)
        flags = [dict(item.fingerprint.flags) for item in found.measurements.values()]
        assert {item["reference"] for item in flags} == {f"{REFERENCE_NAME} in onnxruntime"}

    def test_one_round_builds_again_when_it_has_to(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Protocol, "default", classmethod(lambda cls: Protocol.sample()))
        assert all(item.round_count == 1 for item in run(simulated=FAST).measurements.values())


class TestFailures:
    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("missing", "broken is not installed"),
            ("library", "odd failed: deep inside"),
            ("wrong", "the outputs of simulated .* are off by"),
        ],
    )
    def test_a_runtime_that_fails_does_not_lose_the_others(self, run: Run, how: str, message: str) -> None:
        found = run(odd=broken(how), simulated=FAST)
        assert [pair.runtime for pair in found.measurements] == ["simulated", "simulated"]
        assert set(found.failures) == {Pair("wide", "odd"), Pair("narrow", "odd")}
        for error in found.failures.values():
            assert isinstance(error, HwpruneError)
            with pytest.raises(HwpruneError, match=message):
                raise error

    def test_one_model_that_fails_does_not_lose_the_other(self, run: Run) -> None:
        found = run(simulated=FAST, odd=broken("narrow"))
        assert list(found.failures) == [Pair("narrow", "odd")]
        assert Pair("wide", "odd") in found.measurements
        assert [item.subject for item in found.comparisons()] == ["wide on odd", "narrow on simulated"]

    def test_when_nothing_works_the_first_error_is_raised(self, run: Run) -> None:
        with pytest.raises(DeviceError, match="not installed") as caught:
            run(odd=broken("missing"), other=broken("library"))
        assert caught.value.hint == "pip install broken"

    def test_sessions_are_closed(self, run: Run) -> None:
        Broken.closed.clear()
        run(odd=broken(""))
        assert len(Broken.closed) == len(MODELS) + 1  # and the reference kernel

    def test_no_models(self, run: Run) -> None:
        with pytest.raises(UsageError, match="nothing to measure"):
            run({}, simulated=FAST)


class TestClocks:
    @staticmethod
    def clocked(clock: AbstractClock) -> SimulatedRuntime:
        class Clocked(SimulatedRuntime):
            def clock(self, target: Target) -> AbstractClock:
                return clock

        return Clocked()

    def test_a_runtime_on_the_wall_clock_takes_the_others_with_it(self, run: Run) -> None:
        lanes = [
            together._Lane(name, Target(device="simulated"), self.clocked(clock), FAST.fingerprint(Target()))
            for name, clock in (("a", ThreadCpuClock()), ("b", WallClock()))
        ]
        assert together._common_clock(lanes[:1]).name == "thread_cpu"
        assert together._common_clock(lanes).name == "wall"

    def test_clocks_that_have_nothing_in_common_are_refused(self, run: Run) -> None:
        with pytest.raises(UsageError, match="simulated by virtual, b by wall"):
            run(simulated=FAST, b=self.clocked(WallClock()))


class TestNames:
    def test_a_list_with_precisions(self) -> None:
        targets = split_runtimes("onnxruntime, openvino:bf16", Target(device="host", threads=2))
        assert targets == (Target(threads=2), Target(runtime="openvino", precision="bf16", threads=2))
        assert [together.label_of(target) for target in targets] == ["onnxruntime", "openvino:bf16"]

    def test_the_default_is_the_devices_first_runtime(self) -> None:
        assert split_runtimes("onnxruntime", Target())[0].runtime == "onnxruntime"
        assert split_runtimes("onnxruntime", Target(device="simulated"))[0].runtime == "simulated"

    def test_twice_and_unknown(self) -> None:
        with pytest.raises(UsageError, match="names a runtime twice"):
            split_runtimes("openvino,openvino", Target())
        with pytest.raises(UsageError, match="Did you mean 'openvino'"):
            split_runtimes("onnxruntime,openvine", Target())


def test_real_runtimes_take_turns() -> None:
    pytest.importorskip("openvino")
    models = {"wide": conv_net(128, layers=4), "narrow": conv_net(16, layers=1)}
    protocol = Protocol("test", rounds_min=2, rounds_max=2, laps=4, warmup_s=0.0, retries=0, patience_s=0.05)
    found = measure_together(models, split_runtimes("onnxruntime,openvino", Target()), protocol=protocol)
    assert not found.failures
    assert {pair.runtime: item.fingerprint.runtime for pair, item in found.measurements.items()} == {
        "onnxruntime": "onnxruntime",
        "openvino": "openvino",
    }
    assert all(item.clock == "thread_cpu" for item in found.measurements.values())
    by_runtime = found.comparisons()[-2:]
    assert all(item.ratio < 0.5 for item in by_runtime)
