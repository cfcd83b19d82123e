"""Measurements from made-up rounds."""

from __future__ import annotations

from random import Random

from hwprune.core.measurement import Fingerprint, Measurement, Protocol, Round

FINGERPRINT = Fingerprint("cpu", "x", 1, "onnxruntime", "1.31.1", "fp32", 1, 1, "Linux", (("spinning", "off"),))


def make_round(index: int, laps: list[float], *, reference: float = 1.0, void: str = "") -> Round:
    """Bursts of one lap; the reference took the same time before and after all of them."""
    count = len(laps)
    return Round(index, tuple(laps), (reference,) * count, (reference,) * count, 1, 1.0, 1.06, void, 2.0)


def make(
    medians: list[float], *, laps: int = 30, subject: str = "net", noise: float = 0.0, seed: int = 0
) -> Measurement:
    """One round a median, `laps` laps each, on a reference kernel of 0.5 ms."""
    rng = Random(seed)
    rounds = [
        make_round(index, [median * (1 + noise * rng.gauss(0, 1)) for _ in range(laps)])
        for index, median in enumerate(medians)
    ]
    return Measurement(subject, tuple(rounds), 0.5, Protocol(), FINGERPRINT)
