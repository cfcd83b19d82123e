"""A made-up run folder for tests of whatever reads one. Nothing in it was measured; a formula and a seed made it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hwprune.core.comparison import compare
from hwprune.core.events import CandidateMeasured, Caution, EpochDone, Event, SearchStep, StageStarted
from hwprune.core.files import Journal, atomic_write_text, write_json
from hwprune.core.measurement import Fingerprint, LayerTime, Measurement, Protocol, Round
from hwprune.core.ops import OpKey
from hwprune.report.run_data import Candidate, LayerProfile, NamedOp, Result, TimedEvent

TILE = 16
FLOOR_MS = 0.004
MACS_PER_MS = 6.0e7
DENSE = {
    "stem": 32,
    "layer1.0.conv1": 64,
    "layer1.1.conv1": 64,
    "layer2.0.conv1": 96,
    "layer2.0.conv2": 96,
    "layer2.1.conv1": 96,
    "layer3.0.conv1": 128,
    "layer3.0.conv2": 128,
    "layer3.1.conv1": 128,
}
KEPT = {
    "stem": 32,
    "layer1.0.conv1": 48,
    "layer1.1.conv1": 25,
    "layer2.0.conv1": 64,
    "layer2.0.conv2": 96,
    "layer2.1.conv1": 48,
    "layer3.0.conv1": 112,
    "layer3.0.conv2": 96,
    "layer3.1.conv1": 64,
}


@dataclass(frozen=True)
class Site:
    """A convolution of the made-up network: groups of its input and output, kernel, stride, input size."""

    name: str
    source: str
    target: str
    kernel: int
    stride: int
    size: int


SITES = (
    Site("stem", "", "stem", 3, 1, 32),
    Site("layer1.0.conv1", "stem", "layer1.0.conv1", 3, 1, 32),
    Site("layer1.0.conv2", "layer1.0.conv1", "stem", 3, 1, 32),
    Site("layer1.1.conv1", "stem", "layer1.1.conv1", 3, 1, 32),
    Site("layer1.1.conv2", "layer1.1.conv1", "stem", 3, 1, 32),
    Site("layer2.0.conv1", "stem", "layer2.0.conv1", 3, 2, 32),
    Site("layer2.0.shortcut", "stem", "layer2.0.conv2", 1, 2, 32),
    Site("layer2.0.conv2", "layer2.0.conv1", "layer2.0.conv2", 3, 1, 16),
    Site("layer2.1.conv1", "layer2.0.conv2", "layer2.1.conv1", 3, 1, 16),
    Site("layer2.1.conv2", "layer2.1.conv1", "layer2.0.conv2", 3, 1, 16),
    Site("layer3.0.conv1", "layer2.0.conv2", "layer3.0.conv1", 3, 2, 16),
    Site("layer3.0.shortcut", "layer2.0.conv2", "layer3.0.conv2", 1, 2, 16),
    Site("layer3.0.conv2", "layer3.0.conv1", "layer3.0.conv2", 3, 1, 8),
    Site("layer3.1.conv1", "layer3.0.conv2", "layer3.1.conv1", 3, 1, 8),
    Site("layer3.1.conv2", "layer3.1.conv1", "layer3.0.conv2", 3, 1, 8),
)


def ops(widths: dict[str, int]) -> tuple[NamedOp, ...]:
    """The convolutions and the classifier at these widths."""
    found = []
    for site in SITES:
        channels = widths.get(site.source, 3), widths[site.target]
        out = site.size // site.stride
        kernel, stride = (site.kernel, site.kernel), (site.stride, site.stride)
        found.append(
            NamedOp(site.name, OpKey("conv", *channels, kernel, stride, 1, (site.size, site.size), (out, out)))
        )
    found.append(NamedOp("fc", OpKey("linear", widths["layer3.0.conv2"], 10, (1, 1), (1, 1), 1, (1, 1), (1, 1))))
    return tuple(found)


def layer_times(widths: dict[str, int], seed: int) -> tuple[LayerTime, ...]:
    """Fixed cost, MACs at channels rounded up to the tile, 1 % noise; a width off the tile adds a conversion."""
    rng = Random(seed)
    layers = []
    for number, named in enumerate(ops(widths)):
        op = named.op
        if op.kind == "linear":
            layers.append(LayerTime("ReorderOutput", "ReorderOutput", 0.0041))
            layers.append(LayerTime("fc/Gemm", "Gemm", 0.0052, ((1, op.in_channels),), ((1, 10),)))
            continue
        out = up(op.out_channels)
        into = op.in_channels if op.in_channels == 3 else up(op.in_channels)
        macs = op.macs / (op.in_channels * op.out_channels) * into * out
        latency = (FLOOR_MS + macs / MACS_PER_MS) * rng.gauss(1, 0.01)
        shapes = ((1, into, *op.in_size),), ((1, out, *op.out_size),)
        layers.append(LayerTime(f"{named.name}/Conv+Relu_nchwc", "Conv", latency, *shapes))
        if out != op.out_channels:
            layers.append(LayerTime(f"ReorderOutput_token_{number}", "ReorderOutput", 0.008))
            layers.append(LayerTime("layer1.1.relu/Relu", "Relu", 0.006))
    return tuple(layers)


def up(channels: int) -> int:
    """The next multiple of the tile."""
    return math.ceil(channels / TILE) * TILE


def measurement(subject: str, latency_ms: float, *, seed: int, simulated: bool) -> Measurement:
    """Seven rounds of 30 laps around a latency: 0.4 % noise, one lap in fifty slower, one void round."""
    rng = Random(seed)
    rounds = []
    for index in range(8):
        level = latency_ms * rng.gauss(1, 0.002)
        references = tuple(rng.gauss(0.2, 0.0005) for _ in range(31))
        laps = tuple(level * rng.gauss(1, 0.004) * (1.3 if rng.random() < 0.02 else 1) for _ in range(30))
        rounds.append(
            Round(
                index,
                laps,
                before_ms=references[:-1],
                after_ms=references[1:],
                burst=1,
                floor_ms=0.2,
                quiet_ms=0.212,
                void="trend" if index == 3 else "",
                wall_ms=level,
            )
        )
    runtime = "simulated" if simulated else "onnxruntime"
    fingerprint = Fingerprint(
        "simulated" if simulated else "cpu", "made-up CPU", 1, runtime, "1.31.1", "fp32", 1, 1, "Linux x86_64"
    )
    return Measurement(subject, tuple(rounds), 0.2, Protocol.default(), fingerprint, "thread_cpu", simulated)


def result(folder: Path, *, verdict: str = "pass", simulated: bool = True) -> Result:
    """The answer of the made-up run."""
    dense_sum = sum(layer.latency_ms for layer in layer_times(DENSE, 1))
    pruned_sum = sum(layer.latency_ms for layer in layer_times(KEPT, 2))
    dense = measurement("dense", dense_sum * 0.97, seed=3, simulated=simulated)
    pruned = measurement("pruned", pruned_sum * 0.97, seed=4, simulated=simulated)
    budget = {"pass": pruned.latency_ms * 1.015, "miss": pruned.latency_ms * 0.97}.get(verdict, 0.05)
    answer: dict[str, Any] = {
        "measured_ms": pruned.latency_ms,
        "measured_ci_ms": pruned.ci_ms,
        "predicted_ms": pruned.latency_ms * 0.988,
        "score": 0.9721,
        "params": parameters(KEPT),
        "macs": sum(named.op.macs for named in ops(KEPT)),
        "utilisation": pruned.latency_ms / budget,
        "comparison": compare(dense, pruned),
        "measurements": {"dense": dense, "pruned": pruned},
        "predictions": candidates(budget),
        "widths": KEPT,
    }
    if verdict == "infeasible":
        answer = dict.fromkeys(answer) | {
            "measurements": {"dense": dense},
            "predictions": (),
            "widths": dict.fromkeys(DENSE, 16),
        }
    fit = {"mape": 0.0132, "within_5": 0.98, "within_10": 1.0, "spearman": 0.998, "kendall": 0.96}
    return Result(
        verdict=verdict,  # type: ignore[arg-type]  # one of the three by construction of the tests
        budget_ms=budget,
        dense_ms=dense.latency_ms,
        dense_score=0.9806,
        dense_widths=DENSE,
        run_dir=str(folder),
        seconds=131.0,
        target=dense.fingerprint.target(),
        statistic="median",
        method="greedy",
        seed=0,
        simulated=simulated,
        dense_params=parameters(DENSE),
        dense_macs=sum(named.op.macs for named in ops(DENSE)),
        model="made_up_resnet",
        data="made-up data",
        score_name="top-1",
        smallest_ms=dense.latency_ms * 0.11,
        tile=TILE,
        stages={"dense": 41.0, "profile": 22.5, "fit": 3.1, "search": 30.0, "finetune": 28.4, "verify": 6.0},
        image_passes=21_555,
        warnings=("one round of eight was disturbed and repeated",),
        fit={"lpnet": {**fit, "wrong_sign": 0.02, "label_noise": 0.008}, "linear": {**fit, "mape": 0.031}},
        latency_model="lpnet",
        scores={"dense": 0.9806, "cut": 0.7911, "recalibrated": 0.9214, "finetuned": 0.9721},
        **answer,
    )


def parameters(widths: dict[str, int]) -> int:
    """Weights of all operators."""
    shapes = [named.op for named in ops(widths)]
    return sum(op.kernel[0] * op.kernel[1] * op.in_channels * op.out_channels for op in shapes)


def candidates(budget_ms: float) -> tuple[Candidate, ...]:
    """Three candidates: over the budget, below it with time unused, and the answer. Runs do not score them."""
    found = []
    for share, error in ((1.021, -0.032), (0.943, -0.004), (0.985, -0.012)):
        measured = share * budget_ms
        ci = (measured * 0.997, measured * 1.003)
        found.append(Candidate(KEPT, measured * (1 + error), measured, ci, ci[1] <= budget_ms))
    return tuple(found)


def events(answer: Result, steps: int = 60) -> tuple[TimedEvent, ...]:
    """Stages, epochs, the search's steps with a multiplier that rises and settles, the candidates measured."""
    rng = Random(5)
    found: list[tuple[float, Event]] = [(0.0, StageStarted("dense", "8 epochs"))]
    found += [
        (5.0 * epoch, EpochDone("dense", epoch, 8, {"loss": 2.3 / epoch, "score": 1 - 0.5 / epoch}))
        for epoch in range(1, 9)
    ]
    found.append((63.6, StageStarted("profile", "100 networks")))
    found += [(64.0, Caution(text, "measure on a quiet machine")) for text in answer.warnings]
    found.append((66.7, StageStarted("search", answer.method)))
    for step in range(1, steps + 1):
        progress = step / steps
        predicted = answer.budget_ms * (1 + 0.9 * math.exp(-5 * progress) * math.cos(9 * progress)) + rng.gauss(
            0, 0.004
        )
        metrics = {
            "multiplier": 3 * (1 - math.exp(-4 * progress)),
            "open_share": 0.6 + 0.4 * math.exp(-progress),
            "cost": predicted / answer.dense_ms,
            "budget": answer.budget_ms / answer.dense_ms,
        }
        found.append((66.7 + 30 * progress, SearchStep(step, steps, predicted, metrics)))
    for number, item in enumerate(answer.predictions):
        shown = (dict(item.widths), item.predicted_ms, item.measured_ms, item.measured_ci_ms, item.within_budget)
        found.append((97.0 + number, CandidateMeasured(*shown)))
    return tuple(TimedEvent(time_s, event) for time_s, event in found)


def write_run(folder: Path, *, verdict: str = "pass", simulated: bool = True, layers: bool = True) -> Path:
    """Write the whole folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    answer = result(folder, verdict=verdict, simulated=simulated)
    write_json(folder / "result.json", answer.to_json())
    if layers and verdict != "infeasible":
        profile = LayerProfile(TILE, layer_times(DENSE, 1), layer_times(KEPT, 2), ops(DENSE), ops(KEPT))
        write_json(folder / "layers.json", profile.to_json())
    journal = Journal(folder / "journal.jsonl")
    lines = [timed.to_json() for timed in events(answer)]
    for record in lines[:2]:
        journal.append(record)
    journal.path.write_text(journal.path.read_text() + "".join(map(_line, lines[2:])))
    settings = f'model = "made_up_resnet"\nlatency_ms = {answer.budget_ms}\nseed = 0\n\n[options]\nfloor = 0.25\n'
    atomic_write_text(folder / "run.toml", settings)
    write_json(folder / "environment.json", {"python": "3.11.7", "torch": "2.13.0", "cpu": "made-up CPU"})
    return folder


def _line(record: dict[str, Any]) -> str:
    """A journal's line without its sync to the disk, which a test has no use for."""
    import zlib

    from hwprune.core.files import finite

    body = json.dumps(finite(record), separators=(",", ":"))
    return f"{zlib.crc32(body.encode()):08x} {body}\n"
