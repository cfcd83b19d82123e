"""From a method's answer to a network that measurably meets the budget and uses it.

Predictions steer, measurements decide. A candidate passes when the upper end of its measured interval is within the
budget. One that misses, or leaves more than 3 % of the budget unused, teaches the controller: the latency model gets
the new sample, the target moves by what prediction and measurement differ, and the method answers again.

Other work on the device only ever makes a network look slow. So what misses is asked a second time where its interval
or the other candidates speak against it, and until then it bounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hwprune.core.events import CandidateMeasured, OnEvent, ignore
from hwprune.core.statistics import median
from hwprune.methods._base import Answer
from hwprune.search.anchor import AnchorWidths

# The measured latency aimed at, as a share of the budget: half way between the bound and the 3 % that may stay unused.
AIM = 0.985
UNUSED = 0.03
# On a noisy machine the interval itself takes a part of the budget: up to this much may stay unused when the interval
# reaches up to AIM, for nothing wider could be shown to fit.
UNUSED_UNDER_NOISE = 0.045
# Below this share of the budget "the grid has nothing between" is not believed before a second look.
LITTLE_USED = 0.95
TRIES = 10  # candidates, after which the one that uses the budget best is taken
# A network that reads slower than the other candidates lead the latency model to expect, by more than this, relative,
# was disturbed or is one on which the model errs: a second session tells.
SUSPECT = 0.03


@dataclass(frozen=True)
class Trial:
    """An answer and what the device said: latency and its 95 % interval in ms, and the budget in that session."""

    answer: Answer
    measured_ms: float
    measured_ci_ms: tuple[float, float]
    budget_ms: float

    @property
    def within(self) -> bool:
        """Whether even the upper end of the interval meets the budget."""
        return self.measured_ci_ms[1] <= self.budget_ms

    @property
    def utilisation(self) -> float:
        """Measured latency as a share of the budget."""
        return self.measured_ms / self.budget_ms

    @property
    def settled(self) -> bool:
        """Whether it meets the budget and uses it as far as its interval lets anyone tell."""
        filled = self.measured_ci_ms[1] >= AIM * self.budget_ms
        return self.within and self.utilisation >= 1 - (UNUSED_UNDER_NOISE if filled else UNUSED)

    @property
    def undecided(self) -> bool:
        """Whether it reads within the budget, with an interval too wide to show it."""
        return not self.within and self.utilisation <= AIM

    @property
    def highest_aim(self) -> float:
        """The share of the budget at which the upper end of an interval as wide as this one just meets the budget."""
        return self.measured_ms / max(self.measured_ci_ms[1], self.measured_ms)


@dataclass(frozen=True)
class Settlement:
    """The chosen trial, which uses the budget best of those within it (the fastest when none is), and all trials.

    `exhausted`: the method had no further answer, so that no candidate of its grid lies between the trials; else the
    controller gave up after its number of tries.
    """

    chosen: Trial
    trials: tuple[Trial, ...]
    exhausted: bool = False

    @property
    def next_wider(self) -> Trial | None:
        """The fastest candidate that missed the budget: what lies beyond the chosen one on the grid."""
        missed = [trial for trial in self.trials if not trial.within]
        return min(missed, key=lambda trial: trial.measured_ms, default=None)


@dataclass(frozen=True)
class Believed:
    """What earlier attempts were verified to be, finetuned, and the last of them as an anchor."""

    trials: tuple[Trial, ...]
    anchor: AnchorWidths


class BudgetController:
    """Closes the loop between a method's predictions and the device.

    `measure` times one answer and teaches the latency model; `refit` asks the method for an answer predicted within
    another target (ms); `predict` is the model's current prediction for an answer's widths, and `smallest_ms` that for
    the smallest network: each measurement may raise it.
    """

    def __init__(
        self,
        *,
        measure: Callable[[Answer], Trial],
        refit: Callable[[Answer, float], Answer],
        predict: Callable[[Answer], float],
        smallest_ms: Callable[[], float],
        on_event: OnEvent = ignore,
    ) -> None:
        self.measure = measure
        self.refit = refit
        self.predict = predict
        self.smallest_ms = smallest_ms
        self.on_event = on_event

    def settle(self, answer: Answer, *, believed: Sequence[Trial] = ()) -> Settlement:
        """Measure and move until a candidate is within the budget and uses it, or the grid has none between.

        `believed`: what is verified already, the last of which is not what its candidate had promised: what follows is
        chosen from there, below what was over the budget and above what was within it.
        """
        seen = _Evidence(self.predict)
        following: Answer | None = answer
        for trial in believed:
            seen.believe(trial)
        if believed:
            following = self._next_answer(believed[-1], seen)
        while following is not None and len(seen.trials) < TRIES + len(believed):
            trial = seen.add(self._try(following))
            if trial.settled:
                break
            if seen.may_ask_again(trial) and trial.undecided:
                continue
            following = self._next_answer(trial, seen) or self._doubtful(seen)
        if not any(trial.within for trial in seen.trials.values()):
            least = self.refit(answer, self.smallest_ms())
            if least.widths.values_tuple() not in seen.trials:
                seen.add(self._try(least))
        trials = tuple(seen.trials.values())
        within = [trial for trial in trials if trial.within]
        fastest = min(trials, key=lambda trial: trial.measured_ms)
        chosen = max(within, key=lambda trial: trial.utilisation, default=fastest)
        return Settlement(chosen, trials, exhausted=following is None)

    def _doubtful(self, seen: _Evidence) -> Answer | None:
        """The fastest candidate over the budget, once, where what passed leaves too much unused below it."""
        trials = seen.trials.values()
        if any(trial.within and trial.utilisation >= LITTLE_USED for trial in trials):
            return None
        missed = [trial for trial in trials if not trial.within]
        fastest = min(missed, key=lambda trial: trial.measured_ms, default=None)
        if fastest is None or len(missed) == len(trials) or not seen.may_ask_again(fastest):
            return None
        return fastest.answer

    def _try(self, answer: Answer) -> Trial:
        trial = self.measure(answer)
        self.on_event(
            CandidateMeasured(
                dict(answer.widths), answer.predicted_ms, trial.measured_ms, trial.measured_ci_ms, trial.within
            )
        )
        return trial

    def _next_answer(self, trial: Trial, seen: _Evidence) -> Answer | None:
        """An answer not decided yet whose predicted latency should measure at `AIM` of the budget; None: there is none.

        The bias of the last trial that is believed translates the aim into the model's scale; candidates believed to
        pass and to miss bound it. Where the method answers with a network already tried, the target moves towards the
        open bound.
        """
        believed = seen.believed()
        last = trial if trial in believed else believed[-1]
        wanted = min(AIM, last.highest_aim) * last.budget_ms / seen.bias(last)
        passed = max((self.predict(t.answer) for t in believed if t.within), default=self.smallest_ms())
        missed = min((self.predict(t.answer) for t in believed if not t.within), default=math.inf)
        if passed < missed < math.inf and not passed < wanted < missed:
            wanted = 0.5 * (passed + missed)
        for target_ms in self._targets(wanted, missed, any_passed=any(t.within for t in believed)):
            answer = self.refit(last.answer, max(target_ms, self.smallest_ms()))
            before = seen.trials.get(answer.widths.values_tuple())
            if before is None or (before not in believed and seen.may_ask_again(before)):
                # The prediction from before it was measured; now the model knows this network.
                return answer if before is None else before.answer
        return None

    def _targets(self, wanted: float, missed: float, *, any_passed: bool) -> list[float]:
        if not any_passed:
            return [wanted, *(wanted * (1 - 0.02 * step) for step in range(1, 6)), self.smallest_ms()]
        beyond = missed * (1 - 1e-9) if missed < math.inf else wanted * 1.05
        return [wanted, 0.5 * (wanted + beyond), beyond]


class _Evidence:
    """What was measured: a trial for each network, the better one where it was asked twice."""

    def __init__(self, predict: Callable[[Answer], float]) -> None:
        self.trials: dict[tuple[int, ...], Trial] = {}
        self._predict = predict
        self._twice: set[tuple[int, ...]] = set()

    def add(self, trial: Trial) -> Trial:
        """Keep a trial; of two of one network the one that other work disturbed less, which has the lower upper end."""
        key = trial.answer.widths.values_tuple()
        before = self.trials.pop(key, None)
        if before is not None:
            self._twice.add(key)
            trial = min(before, trial, key=lambda item: item.measured_ci_ms[1])
        self.trials[key] = trial
        return trial

    def believe(self, trial: Trial) -> None:
        """Keep a trial that is not to be measured again."""
        key = trial.answer.widths.values_tuple()
        self.trials[key] = trial
        self._twice.add(key)

    def bias(self, trial: Trial) -> float:
        """Measured over predicted latency."""
        return trial.measured_ms / self._predict(trial.answer)

    def may_ask_again(self, trial: Trial) -> bool:
        """Whether this network has been measured only once."""
        return trial.answer.widths.values_tuple() not in self._twice

    def believed(self) -> list[Trial]:
        """The trials without those over the budget that the others contradict; all, where none is left."""
        trials = list(self.trials.values())
        return [trial for trial in trials if not self._suspect(trial, trials)] or trials

    def _suspect(self, trial: Trial, trials: list[Trial]) -> bool:
        others = [self.bias(other) for other in trials if other is not trial]
        if trial.within or not others or not self.may_ask_again(trial):
            return False
        return self.bias(trial) > (1 + SUSPECT) * median(others)
