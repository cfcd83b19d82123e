"""From an answer to a verified network: settle, finetune, verify; then a step down or up where the verdict asks for it.

Down: the finetuned network is over the budget that its candidate had met. Up: it leaves more of the budget unused than
the grid explains. Every attempt is kept on the disk, so that a run that was killed goes on with the one it was at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hwprune.core.events import Caution, Note
from hwprune.core.units import format_ms, percent
from hwprune.core.widths import Limits
from hwprune.latency.limited import tightest
from hwprune.methods._base import AbstractMethod, Answer
from hwprune.search.anchor import AnchorWidths
from hwprune.search.answers import load_settlement, save_settlement
from hwprune.search.controller import LITTLE_USED, Believed, Settlement, Trial
from hwprune.search.finish import Finished, Outcome, Verified, finish
from hwprune.search.stages import settle
from hwprune.search.workshop import QUIETER, Workshop

# What the candidates of each attempt leave free of the budget: after the finetuned network of the first missed it a
# little, and after two did, on a device that says two things of one network, enough to end the matter.
RESERVES = (0.0, 0.01, 0.04)
RESERVE_UP = RESERVES[1]
# A finetuned network has the shape of its candidate: what reads slower by more than this was disturbed. That much is
# believed, for going further back would give away accuracy to a neighbour on the machine.
MOST_SLOWER = 1.06
GAIN = 0.02  # a network that takes no more of the budget than this, relative, is not worth a second finetuning
OUTCOME = "outcome.json"
Direction = Literal["straight", "down", "up"]


@dataclass(frozen=True)
class Attempt:
    """A candidate that settled, and what became of it."""

    settled: Settlement
    outcome: Outcome

    @property
    def verified(self) -> Verified:
        """What the finetuned network was measured to be."""
        return self.outcome.verified

    @property
    def within(self) -> bool:
        """Whether that is within the budget."""
        return self.verified.within

    def believed(self) -> Trial:
        """What the finetuned network measured, as far as it is believed; never within the budget if it was not."""
        verified, share = self.verified, self._believed_share()
        measured_ms, low, high = verified.pruned.statistic(verified.statistic)
        answer = self.settled.chosen.answer
        return Trial(answer, measured_ms * share, (low * share, high * share), verified.budget_ms)

    def anchor(self) -> AnchorWidths:
        """The finetuned network as what others are timed beside."""
        latency_ms = self.verified.pruned.latency_ms * self._believed_share()
        return AnchorWidths(self.settled.chosen.answer.widths, latency_ms)

    def _believed_share(self) -> float:
        measured_ms, _, _ = self.verified.pruned.statistic(self.verified.statistic)
        most_ms = max(MOST_SLOWER * self.settled.chosen.measured_ms, self.verified.budget_ms)
        return min(measured_ms, most_ms) / measured_ms


def verified_network(shop: Workshop, method: AbstractMethod, answer: Answer) -> tuple[Finished, tuple[Attempt, ...]]:
    """The network of the attempt that uses the budget best (the last, where none is within), and all attempts."""
    attempts: list[Attempt] = []
    done: Finished | None = None
    direction: Direction | None = "straight"
    while direction:
        settled = _settled(shop, method, answer, attempts, direction)
        if not _worth_finetuning(settled, attempts):
            break
        outcome = Outcome.read(_folder(shop, len(attempts)) / OUTCOME)
        if outcome is None:
            done = _finish(shop, settled, len(attempts))
            outcome = done.outcome
        attempts.append(Attempt(settled, outcome))
        direction = _direction(shop, attempts)
    within = [attempt for attempt in attempts if attempt.within]
    best = max(within, key=lambda attempt: attempt.verified.utilisation, default=attempts[-1])
    _tell_unused(shop, attempts, best, settled)
    if done is None or done.answer.widths != best.settled.chosen.answer.widths:
        # Of another process or replaced by a later attempt: trained from its last checkpoint, its measurements stand.
        done = _finish(shop, best.settled, attempts.index(best))
    return done, tuple(attempts)


def _folder(shop: Workshop, attempt: int) -> Path:
    """What an attempt left: the candidates it measured, and what its network was verified to be."""
    return shop.folder.path / "settled" / str(attempt)


def _finish(shop: Workshop, settled: Settlement, attempt: int) -> Finished:
    chosen = settled.chosen
    kept = _folder(shop, attempt) / OUTCOME
    return finish(shop, chosen.answer, attempt, candidate_ms=chosen.measured_ms, kept=kept)


def _direction(shop: Workshop, attempts: Sequence[Attempt]) -> Direction | None:
    """Where to go from the last attempt: down while the reserves last, up once, or nowhere."""
    last = attempts[-1]
    if any(attempt.within for attempt in attempts[:-1]):
        return None
    if not last.within:
        return "down" if last.settled.chosen.within and len(attempts) < len(RESERVES) else None
    if last.verified.utilisation >= LITTLE_USED or _binding(shop, last) is not None:
        return None
    candidate = last.settled.chosen
    gave_up = not (last.settled.exhausted or candidate.settled)
    return "up" if gave_up or candidate.measured_ms >= LITTLE_USED * shop.budget_ms else None


def _settled(
    shop: Workshop, method: AbstractMethod, answer: Answer, before: Sequence[Attempt], direction: Direction
) -> Settlement:
    """Kept once decided: measured anew after a kill, another candidate could win than the one half finetuned.

    `before` are the attempts so far; this one goes down or up from the last of them.
    """
    number = len(before)
    stage = f"settle-{number}" if number else "settle"
    folder = _folder(shop, number)
    reserve = RESERVE_UP if direction == "up" else RESERVES[number]

    def work() -> Settlement:
        believed = None
        if before:
            last = before[-1]
            _tell(shop, last, direction)
            shop.learn(last.settled.chosen.answer.widths, last.verified.pruned)
            believed = Believed(tuple(attempt.believed() for attempt in before), last.anchor())
        settled = settle(shop, method, answer, reserve=reserve, believed=believed)
        save_settlement(settled, folder)
        return settled

    return shop.folder.stage(stage, work, lambda: load_settlement(folder, shop.table.space, answer))


def _tell(shop: Workshop, last: Attempt, direction: Direction) -> None:
    if direction == "down":
        text = "the finetuned network measures over the budget its candidate had met: stepping back"
    else:
        used = percent(last.verified.utilisation)
        text = f"the finetuned network uses {used} of the budget: looking for a wider one beside it"
    shop.folder.emit(Note(text))


def _worth_finetuning(settled: Settlement, before: Sequence[Attempt]) -> bool:
    """Whether this is another network than the last attempts', and after one within the budget a slower one."""
    chosen = settled.chosen
    if any(attempt.settled.chosen.answer.widths == chosen.answer.widths for attempt in before):
        return False
    if not before or not before[-1].within:
        return True
    return chosen.within and chosen.measured_ms >= (1 + GAIN) * before[-1].believed().measured_ms


def _tell_unused(shop: Workshop, attempts: Sequence[Attempt], best: Attempt, found: Settlement) -> None:
    """Say that a part of the budget stays unused, and why; `found` is what was settled last."""
    if not best.within or best.verified.utilisation >= LITTLE_USED:
        return
    used = f"{percent(best.verified.utilisation)} of the budget is used"
    binding = _binding(shop, best)
    if binding is not None:
        shop.folder.emit(Note(f"{used}: the limit on {Limits.WORDS[binding[0]]} is, by {percent(binding[1])}"))
        return
    wider, hint = found.next_wider, QUIETER
    if best is not attempts[-1]:
        why = "the next wider network, once finetuned, is over it"
    elif found.chosen.answer.widths != best.settled.chosen.answer.widths:
        why = f"a candidate of {format_ms(found.chosen.measured_ms)} was not worth a second finetuning"
    elif not found.exhausted:
        why = f"in {len(found.trials)} candidates the measurements contradicted one another"
    else:
        why = "the method has no candidate between"
        why += f"; the next wider candidate needs {format_ms(wider.measured_ms)}" if wider else ""
        hint = "a smaller --tile or --min-keep gives a finer grid"
    shop.folder.emit(Caution(f"{used}: {why}", hint=hint))


def _binding(shop: Workshop, attempt: Attempt) -> tuple[str, float] | None:
    """The limit that keeps a network from using more of the budget, and the share of that limit it uses."""
    limits, widths = shop.settings.budget.limits, attempt.settled.chosen.answer.widths
    tight = tightest(shop.graph, shop.table.space, limits, widths)
    return tight if tight is not None and tight[1] >= LITTLE_USED else None
