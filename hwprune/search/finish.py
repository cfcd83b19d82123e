"""From the chosen units to the verdict: cut, recalibrate, finetune, export, check, and measure what was exported."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hwprune.core.comparison import Comparison
from hwprune.core.errors import RunError
from hwprune.core.events import Caution, Note
from hwprune.core.files import read_json, write_json
from hwprune.core.measurement import Measurement, Protocol
from hwprune.core.units import format_ms, percent
from hwprune.core.widths import Statistic
from hwprune.graph import cut
from hwprune.methods._base import Answer
from hwprune.search.controller import LITTLE_USED
from hwprune.search.drift import DRIFT
from hwprune.search.settings import SearchSettings
from hwprune.search.shipping import export_network, shipped_score
from hwprune.search.workshop import STEADY, Workbench, Workshop
from hwprune.training import evaluate, finetune, recalibrate_bn

RECALIBRATION_IMAGES = 1024
CONTRADICTION = 0.03  # two undisturbed sessions of one network differ by less, relative


@dataclass(frozen=True)
class Verified:
    """The exported network measured as its candidates were, which the budget is about, and beside the dense one."""

    pruned: Measurement
    dense: Measurement
    comparison: Comparison
    budget_ms: float
    statistic: Statistic

    @property
    def within(self) -> bool:
        """Whether even the upper end of the measured interval meets the budget."""
        return self.pruned.statistic(self.statistic)[2] <= self.budget_ms

    @property
    def utilisation(self) -> float:
        """Measured latency as a share of the budget."""
        return self.pruned.statistic(self.statistic)[0] / self.budget_ms

    def fields(self, cautions: Iterable[str] = ()) -> dict[str, Any]:
        """The fields of a result that this session decides; its warnings are those of the run and of the session."""
        value, low, high = self.pruned.statistic(self.statistic)
        return {
            "verdict": "pass" if self.within else "miss",
            "budget_ms": self.budget_ms,
            "dense_ms": self.dense.statistic(self.statistic)[0],
            "measured_ms": value,
            "measured_ci_ms": (low, high),
            "simulated": self.pruned.simulated,
            "warnings": tuple(dict.fromkeys((*self.dense.warnings, *self.pruned.warnings, *cautions))),
            "utilisation": self.utilisation,
            "measurements": {"dense": self.dense, "pruned": self.pruned},
            "comparison": self.comparison,
        }

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal verification."""
        return {
            "pruned": self.pruned.to_json(),
            "dense": self.dense.to_json(),
            "comparison": self.comparison.to_json(),
            "budget_ms": self.budget_ms,
            "statistic": self.statistic,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Verified:
        """What `to_json` wrote."""
        return cls(
            Measurement.from_json(document["pruned"]),
            Measurement.from_json(document["dense"]),
            Comparison.from_json(document["comparison"]),
            float(document["budget_ms"]),
            document["statistic"],
        )


@dataclass(frozen=True)
class Outcome:
    """What a finetuned network was verified to be, and the images that went forward and backward for it."""

    verified: Verified
    image_passes: int

    def write(self, path: Path) -> None:
        """Keep it: measured again, a network could be given another verdict."""
        write_json(path, {"image_passes": self.image_passes, "verified": self.verified.to_json()})

    @classmethod
    def read(cls, path: Path) -> Outcome | None:
        """What `write` kept, or None where the file is none yet. Raises `RunError` for a damaged one."""
        if not path.exists():
            return None
        document = read_json(path)
        try:
            return cls(Verified.from_json(document["verified"]), int(document["image_passes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {error!r}", hint="remove the run folder") from error


@dataclass(frozen=True)
class Finished:
    """The pruned network, what it was made from, its test scores through the stages, and its outcome."""

    model: nn.Module
    answer: Answer
    scores: Mapping[str, float]
    outcome: Outcome


def finish(shop: Workshop, answer: Answer, attempt: int, *, candidate_ms: float, kept: Path) -> Finished:
    """Make the network of an answer, finetune it, export it and measure the exported file against the dense one.

    `candidate_ms` is what a network of these widths has measured before; what it was verified to be is `kept` in a file
    and taken from there the next time.
    """
    stage = "finetune" if attempt == 0 else f"finetune-{attempt}"
    if shop.dense_score is None:
        shop.dense_score = evaluate(shop.model, shop.data, "test", task=shop.task).score
    scores = {"dense": shop.dense_score}
    small, passes = shop.folder.stage(stage, lambda: _finetuned(shop, answer, stage, scores))
    shipment = shop.folder.stage("export", lambda: export_network(shop, small, answer.keep))
    shipment.write(shop)
    shipped = shipment.onnx
    scores.update(shipped_score(shop, shipment))
    seed = shop.settings.seed + 1000 + attempt
    patience_s = shop.folder.seconds.get(stage, 0.0)

    def work() -> Outcome:
        verified = verify(shop, shipped, seed=seed, candidate_ms=candidate_ms, patience_s=patience_s)
        outcome = Outcome(verified, passes)
        outcome.write(kept)
        return outcome

    return Finished(small, answer, scores, Outcome.read(kept) or shop.folder.stage("verify", work))


def verify(
    shop: Workbench, shipped: bytes, *, seed: int, candidate_ms: float = math.inf, patience_s: float = 0.0
) -> Verified:
    """Time what ships as its candidate was, without the dense network; then beside that, for the ratio.

    `candidate_ms` is the former measurement of these widths. Where it met the budget and this session does not, one
    session stands against one and a third decides, for stepping back would cost a second finetuning. So would stepping
    up, where this session leaves more of the budget unused than the candidate: the next session takes its place.
    Sessions that scatter, or read slower than `candidate_ms`, were disturbed for their whole length: they are repeated
    for as long as `patience_s`.
    """
    began_s = shop.folder.elapsed_s
    over: list[Measurement] = []
    alone = _alone(shop, shipped, seed)
    if _too_fast(shop, alone, candidate_ms):
        _tell_again(shop, "a part of the budget is unused", alone, candidate_ms)
        alone = _alone(shop, shipped, seed + 250)
    while _over(shop, alone):
        disturbed = _disturbed(shop, alone, candidate_ms)
        waiting = disturbed and shop.folder.elapsed_s - began_s < patience_s
        contested = not over and (disturbed or candidate_ms <= shop.budget_ms)
        if not waiting and not contested:
            break
        over.append(alone)
        _tell_again(shop, "over the budget", alone, candidate_ms)
        alone = _alone(shop, shipped, seed + 500 * len(over))
    if not _over(shop, alone):
        _tell_divided(shop, over, candidate_ms)
    _tell_slowdown(shop, alone)
    both = {"dense": shop.template.dense, "pruned": shipped}
    dense = shop.in_turns({"dense": both["dense"]}, Protocol.default(), seed=seed)["dense"]
    (ratio,) = shop.board.compare(both, protocol=Protocol.default(), seed=seed, on_event=shop.folder.emit)
    return Verified(alone, dense, ratio, shop.budget_ms, shop.settings.statistic)


def _alone(shop: Workbench, shipped: bytes, seed: int) -> Measurement:
    return shop.measure({"pruned": shipped}, seed=seed, decides=True)["pruned"]


def _ms(shop: Workbench, timed: Measurement) -> tuple[float, float, float]:
    return timed.statistic(shop.settings.statistic)


def _over(shop: Workbench, timed: Measurement) -> bool:
    return _ms(shop, timed)[2] > shop.budget_ms


def _too_fast(shop: Workbench, timed: Measurement, candidate_ms: float) -> bool:
    value = _ms(shop, timed)[0]
    contradicts = math.isfinite(candidate_ms) and value < (1 - CONTRADICTION) * candidate_ms
    return contradicts and value < LITTLE_USED * shop.budget_ms


def _disturbed(shop: Workbench, timed: Measurement, candidate_ms: float) -> bool:
    contradicts = _ms(shop, timed)[0] > (1 + CONTRADICTION) * candidate_ms
    return math.isfinite(candidate_ms) and (contradicts or timed.scatter > STEADY)


def _tell_again(shop: Workbench, why: str, timed: Measurement, candidate_ms: float) -> None:
    """Say that a session is not what its candidate promised, and that another one follows."""
    unlike = f"{format_ms(_ms(shop, timed)[0])} where its candidate took {format_ms(candidate_ms)}"
    shop.folder.emit(Note(f"{why}, with {unlike}: measuring again"))


def _tell_divided(shop: Workbench, over: Sequence[Measurement], candidate_ms: float) -> None:
    """Say that an undisturbed session spoke against the verdict: the budget lies within what sessions differ by."""
    against = [_ms(shop, timed) for timed in over if not _disturbed(shop, timed, candidate_ms)]
    if against:
        value, _, high = max(against, key=lambda item: item[2])
        text = f"a session before the last read {format_ms(value)} (up to {format_ms(high)}), over the budget"
        shop.folder.emit(Caution(text, hint="it is met narrowly; a slightly lower budget is met with certainty"))


def _tell_slowdown(shop: Workbench, alone: Measurement) -> None:
    """Say that the milliseconds of the verdict, those of when the budget was fixed, are not those of today."""
    change = alone.slowdown - 1
    if abs(change) > DRIFT:
        now = format_ms(alone.slowdown * _ms(shop, alone)[0])
        pace = f"{percent(abs(change), 0)} {'slower' if change > 0 else 'faster'}"
        text = f"the machine is {pace} than when the budget was fixed: the network takes {now} now"
        shop.folder.emit(Caution(text, hint="a share of the dense latency is met as a share; hwprune bench says both"))


def _finetuned(shop: Workshop, answer: Answer, stage: str, scores: dict[str, float]) -> tuple[nn.Module, int]:
    """The cut network with finetuned weights, and the images that went forward and backward for it."""

    def score(name: str) -> None:
        scores[name] = evaluate(small, shop.data, "test", task=shop.task).score
        shop.folder.emit(Note(f"test score {scores[name]:.4f} ({name})"))

    full = copy.deepcopy(shop.model)
    if answer.state is not None:
        full.load_state_dict(dict(answer.state))
    small = cut(full, shop.graph, answer.keep).eval()
    score("cut")
    recalibrate_bn(small, shop.data, RECALIBRATION_IMAGES, seed=shop.settings.seed)
    score("recalibrated")
    epochs = finetune_epochs(shop.settings, answer.image_passes, len(shop.data.train))
    if not epochs:
        return small, 0
    log = finetune(
        small,
        shop.model,
        shop.data,
        task=shop.task,
        plan=shop.plan(epochs),
        seed=shop.settings.seed,
        checkpoint=shop.folder.checkpoint(stage),
        on_event=shop.folder.emit,
        stop=shop.stop,
    )
    score("finetuned")
    return small.eval(), log.image_passes


def finetune_epochs(settings: SearchSettings, search_passes: int, train_images: int) -> float:
    """The epochs that finetuning gets: its own number, or what the search has left of the total."""
    if not settings.total_epochs:
        return settings.finetune_epochs
    return max(0.0, settings.total_epochs - search_passes / train_images)
