"""A synthetic network on a synthetic device: a staircase in the widths whose latency is known in closed form.

`StaircaseBoard` and `StaircaseTemplate` stand in for an open device and an exported network where a test is about
tables and models, not about runtimes: no ONNX, no clock, seeded noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np

from hwprune.core.events import OnEvent, ignore
from hwprune.core.measurement import Fingerprint, LayerTime, Measurement, Protocol, Round
from hwprune.core.ops import ChannelCount, OpTemplate
from hwprune.core.widths import ChannelGroup, SearchSpace, Widths
from hwprune.latency.features import Array, IntArray, Work, widths_array
from hwprune.latency.samples import LayerSample, Samples

TILE = 16
# Milliseconds for a unit of each quantity on the synthetic device: MACs, weights, activations; and for each layer.
MS_PER_MAC, MS_PER_WEIGHT, MS_PER_ACTIVATION, MS_PER_LAYER = 2e-8, 1e-6, 4e-8, 2e-3


def staircase_space(tile: int = TILE) -> SearchSpace:
    """Five groups of an inverted-residual network: stem, two blocks' hidden widths, the stage between, the head."""
    units = {"stem": 32, "a.hidden": 96, "stage": 64, "b.hidden": 192, "head": 256}
    groups = tuple(ChannelGroup(name, count) for name, count in units.items())
    return SearchSpace(groups, tuple(tuple(range(tile, group.units + 1, tile)) for group in groups))


def staircase_ops() -> tuple[OpTemplate, ...]:
    """The operators of that network at 48x48 pixels."""
    image, classes = ChannelCount(3), ChannelCount(10)
    stem, a, stage, b, head = (
        ChannelCount(0, ((name, 1),)) for name in ("stem", "a.hidden", "stage", "b.hidden", "head")
    )

    def conv(name: str, before: ChannelCount, after: ChannelCount, kernel: int, sizes: tuple[int, int]) -> OpTemplate:
        size = {"in_size": (sizes[0],) * 2, "out_size": (sizes[1],) * 2, "stride": (sizes[0] // sizes[1],) * 2}
        groups = before if name.endswith("depthwise") else ChannelCount(1)
        return OpTemplate(name, "conv", before, after, (kernel, kernel), groups=groups, fused="relu", **size)  # type: ignore[arg-type]

    return (
        conv("stem", image, stem, 3, (48, 24)),
        conv("a.expand", stem, a, 1, (24, 24)),
        conv("a.depthwise", a, a, 3, (24, 12)),
        conv("a.project", a, stage, 1, (12, 12)),
        conv("b.expand", stage, b, 1, (12, 12)),
        conv("b.depthwise", b, b, 3, (12, 12)),
        conv("b.project", b, stage, 1, (12, 12)),
        OpTemplate("b.add_0", "add", stage, stage, in_size=(12, 12), out_size=(12, 12)),
        conv("head", stage, head, 1, (12, 12)),
        OpTemplate("classifier", "linear", head, classes),
    )


def staircase_layers_ms(values: IntArray) -> Array:
    """The exact time of each operator `[B, O]` for widths `[B, 5]`: linear in work at tile-rounded channels."""
    work = Work(staircase_ops(), staircase_space(1), TILE).layers(values)
    moved = MS_PER_ACTIVATION * (work.reads + work.writes)
    return np.asarray(MS_PER_LAYER + MS_PER_MAC * work.macs + MS_PER_WEIGHT * work.weights + moved)


def staircase_samples(count: int = 60, *, seed: int = 0, noise: float = 0.01, tile: int = TILE) -> Samples:
    """Networks drawn at random with their latency, times log-normal noise, and the layer times of five of them."""
    space, rng = staircase_space(tile), np.random.default_rng(seed)
    drawn = np.stack([rng.choice(np.array(allowed), count) for allowed in space.widths], axis=1)
    drawn[0], drawn[1] = space.dense().values_tuple(), space.smallest().values_tuple()
    times = staircase_layers_ms(drawn)
    latency_ms = times.sum(axis=1) * np.exp(noise * rng.standard_normal(count))
    names = [op.name for op in staircase_ops()]
    layers = tuple(
        LayerSample(
            tuple(int(width) for width in drawn[row]),
            tuple(LayerTime(f"{name}/node", "op", float(ms)) for name, ms in zip(names, times[row], strict=True)),
        )
        for row in range(5)
    )
    return Samples(space, staircase_ops(), TILE, drawn.astype(np.int64), latency_ms, layers)


FINGERPRINT = Fingerprint("staircase", "none", 1, "simulated", "1", "fp32", 1, 1, "none")


class StaircaseTemplate:
    """Stands in for `OnnxTemplate`: the bytes of a network are its widths as JSON."""

    def at_widths(self, widths: Mapping[str, int]) -> bytes:
        """What `StaircaseBoard` can measure."""
        return json.dumps(dict(widths)).encode()


class StaircaseGraph:
    """Stands in for `ChannelGraph` where only the operators and the dense widths are asked for."""

    op_templates = staircase_ops()

    def dense(self) -> Widths:
        """The dense widths."""
        return staircase_space().dense()


@dataclass
class StaircaseBoard:
    """Stands in for `Board`: exact latencies times seeded noise. `asked` counts the measured networks."""

    noise: float = 0.01
    fingerprint: Fingerprint = FINGERPRINT
    reference_ms: float = 1.0
    distant: bool = False
    asked: int = field(default=0, init=False)

    def measure(
        self, models: Mapping[str, bytes], *, protocol: Protocol, seed: int = 0, on_event: OnEvent = ignore
    ) -> dict[str, Measurement]:
        """One round of `protocol.laps` laps for each network; noise depends on network and seed only."""
        return {name: self._measurement(name, model, protocol, seed) for name, model in models.items()}

    def layers(self, model: bytes, *, runs: int = 30) -> tuple[LayerTime, ...]:
        """The exact time of every operator."""
        times = staircase_layers_ms(widths_array(staircase_space(), [json.loads(model)]))[0]
        return tuple(
            LayerTime(f"{op.name}/node", op.kind, float(ms)) for op, ms in zip(staircase_ops(), times, strict=True)
        )

    def _measurement(self, name: str, model: bytes, protocol: Protocol, seed: int) -> Measurement:
        self.asked += 1
        rng = Random(f"{seed} {model!r}")
        exact = sum(layer.latency_ms for layer in self.layers(model))
        laps = tuple(exact * (1 + self.noise * rng.gauss(0, 1)) for _ in range(protocol.laps))
        ones = (1.0,) * len(laps)
        rounds = (Round(0, laps, ones, ones, burst=1, floor_ms=1.0, quiet_ms=1.1),)
        return Measurement(name, rounds, self.reference_ms, protocol, self.fingerprint, "virtual", True)
