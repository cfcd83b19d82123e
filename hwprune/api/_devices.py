"""Devices and timing: bench, doctor, devices. One function a verb."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hwprune.core.errors import UsageError, unknown_name
from hwprune.core.events import OnEvent, ignore
from hwprune.core.measurement import Protocol, Target
from hwprune.core.units import parse_latency_ms
from hwprune.devices import Check, DeviceInfo, connect, find_device, resolve
from hwprune.devices import devices as all_devices
from hwprune.devices.together import split_runtimes
from hwprune.search.outcomes import BenchResult
from hwprune.search.runtime_bench import bench_runtimes
from hwprune.search.subjects import onnx_subjects


def bench(
    *subjects: str | Path,
    device: str = "cpu",
    runtime: str | None = None,
    threads: int = 1,
    batch: int = 1,
    x: tuple[int, ...] | None = None,
    fail_above: float | str | None = None,
    protocol: str = "default",
    laps: int | None = None,
    rounds: int | None = None,
    seed: int = 0,
    on_event: OnEvent = ignore,
) -> BenchResult:
    """Time ONNX files, models or runs in turns in one process, then each beside the first, which gives its ratio to it.

    `protocol`: quick, default or publish. `fail_above`: a limit in ms, or as "4ms". `runtime`: one, or several with
    commas, all in one interleaved run; `openvino:bf16` is another precision than fp32. `x`: the input shape of models,
    batch included; files and runs have their own.
    """
    chosen = {"quick": Protocol.quick, "default": Protocol.default, "publish": Protocol.publish}
    if protocol not in chosen:
        raise unknown_name("protocol", protocol, chosen)
    limit_ms = parse_latency_ms(fail_above) if isinstance(fail_above, str) else fail_above
    plan = chosen[protocol]()
    if laps is not None:
        plan = dataclasses.replace(plan, laps=laps)
    if rounds is not None:
        plan = dataclasses.replace(plan, rounds_min=rounds, rounds_max=rounds)
    models = onnx_subjects(tuple(map(str, subjects)), batch=batch, shape=x)
    targets = split_runtimes(runtime or Target.runtime, Target(device, batch=batch, threads=threads))
    if plan.rounds_max < 2 and len(models) * len(targets) > 1:
        raise UsageError(f"{plan.rounds_max} round gives no interval of a ratio", hint="give --rounds 2 or more")
    if len(targets) > 1:
        return bench_runtimes(models, targets, plan, fail_above_ms=limit_ms, seed=seed, on_event=on_event)
    with connect(targets[0]) as board:
        timed = board.measure(models, protocol=plan, seed=seed, on_event=on_event)
        comparisons = board.compare(models, protocol=plan, seed=seed, on_event=on_event)
    return BenchResult({name: timed[name] for name in models}, comparisons, limit_ms)


def devices() -> tuple[DeviceInfo, ...]:
    """The known devices: shipped, the user's and the working directory's."""
    return all_devices()


def device(name: str) -> DeviceInfo:
    """The device of that name or alias."""
    return find_device(name)


def doctor(device: str = "cpu", *, runtime: str | None = None, threads: int = 1) -> tuple[Check, ...]:
    """Whether a device is fit to be measured on, and how wide an interval to expect."""
    with connect(resolve(Target(device, runtime or Target.runtime, threads=threads))) as board:
        return board.checks()
