"""The stages of a run after profiling: feasible? search, settle. Each can be resumed from its artefact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hwprune.core import config, plugins
from hwprune.core.events import CandidateMeasured
from hwprune.core.measurement import Measurement
from hwprune.core.widths import Widths
from hwprune.latency.limited import LimitedLatency, SearchLatency
from hwprune.methods._adjust import fastest
from hwprune.methods._base import AbstractMethod, Answer, Problem
from hwprune.methods._questions import predicted
from hwprune.search.answers import load_answer, save_answer
from hwprune.search.controller import AIM, Believed, BudgetController, Settlement, Trial
from hwprune.search.workshop import Workshop


def make_method(name: str, options: dict[str, Any]) -> AbstractMethod:
    """The method of that name with its options, which are the fields of its dataclass."""
    return config.from_mapping(
        plugins.load("hwprune.methods", name, AbstractMethod),  # type: ignore[type-abstract]
        options,
        where=f"method {name}",
    )


def make_problem(shop: Workshop, target_ms: float) -> Problem:
    """The problem a method solves, at one target."""
    settings, limits = shop.settings, shop.settings.budget.limits
    latency: SearchLatency = shop.latency
    if limits:
        latency = LimitedLatency(latency, shop.graph, limits, target_ms)
    return Problem(
        model=shop.model,
        graph=shop.graph,
        space=shop.table.space,
        latency=latency,
        dense_ms=predicted(latency, shop.table.space.dense()),
        target_ms=target_ms,
        data=shop.data,
        task=shop.task,
        plan=replace(shop.plan(settings.epochs), clip_norm=0.0),  # a method's gates have gradients of another size
        seed=settings.seed,
        checkpoint=shop.folder.checkpoint("search"),
        on_event=shop.folder.emit,
        stop=shop.stop,
        study=shop.folder.path / "study.log",
        measure=lambda candidates: measured_use(shop, candidates),
        image_budget=round(settings.total_epochs * len(shop.data.train)) or None,
    )


def measured_use(shop: Workshop, candidates: Sequence[Widths]) -> list[float]:
    """Time sub-networks in turns in one session: the upper end of each interval as a share of the budget.

    The table learns them; the latency model is fitted again when the candidates are settled.
    """
    names = [f"candidate {number}" for number in range(len(candidates))]
    networks = {name: shop.template.at_widths(widths) for name, widths in zip(names, candidates, strict=True)}
    timed = shop.measure(networks, seed=shop.settings.seed)
    uses = []
    for name, widths in zip(names, candidates, strict=True):
        value, low, high = timed[name].statistic(shop.settings.statistic)
        predicted_ms = predicted(shop.latency, widths)
        shop.folder.emit(CandidateMeasured(dict(widths), predicted_ms, value, (low, high), high <= shop.budget_ms))
        shop.record(widths, timed[name])
        uses.append(high / shop.budget_ms)
    return uses


def search_answer(shop: Workshop, method: AbstractMethod, budget_ms: float) -> Answer:
    """What the method finds at the budget; predicted, not yet measured."""
    folder = shop.folder.path / "answer"

    def work() -> Answer:
        # The measured smallest network meets a budget that its prediction may miss: measurements decide.
        problem = make_problem(shop, max(AIM * budget_ms, _least_ms(shop)))
        answer = _in_ms(shop, list(method.search(problem))[-1])
        save_answer(answer, folder)
        return answer

    return shop.folder.stage("search", work, lambda: load_answer(folder, shop.table.space))


def _in_ms(shop: Workshop, answer: Answer) -> Answer:
    """An answer with its predicted latency alone: under limits the method steered by more than that."""
    return replace(answer, predicted_ms=predicted(shop.latency, answer.widths))


def _least_ms(shop: Workshop) -> float:
    """The least latency that the model predicts now: no target below it can be met."""
    return fastest(shop.table.space, shop.latency).predicted_ms


def settle(
    shop: Workshop, method: AbstractMethod, answer: Answer, *, reserve: float = 0.0, believed: Believed | None = None
) -> Settlement:
    """Measure and move until the candidate meets the budget and uses it, leaving a `reserve`, a share of the budget.

    With `believed` it goes on from the last network verified and beside it: what its finetuned weights measured is
    where the search stands, and a network of nearly its size reads a few percent less or more in any hour, whatever has
    become of the machine.
    """
    statistic = shop.settings.statistic
    tried: list[Trial] = []

    def trial(candidate: Answer, *, decides: bool) -> tuple[Trial, Measurement]:
        seed = shop.settings.seed + 1 + 2 * len(tried) + decides
        network = {"candidate": shop.template.at(candidate.keep)}
        timed = shop.measure(network, seed=seed, decides=decides, beside=believed.anchor if believed else None)
        value, low, high = timed["candidate"].statistic(statistic)
        return Trial(candidate, value, (low, high), shop.budget_ms * (1 - reserve)), timed["candidate"]

    def measure(candidate: Answer) -> Trial:
        # What passes is finetuned next, which costs far more than a second, longer session that confirms it.
        found, measurement = trial(candidate, decides=False)
        if found.settled:
            found, measurement = trial(candidate, decides=True)
        shop.learn(candidate.widths, measurement)
        tried.append(found)
        return found

    def predict(candidate: Answer) -> float:
        return predicted(shop.latency, candidate.widths)

    def refit(candidate: Answer, target_ms: float) -> Answer:
        # What was measured since the target was chosen may have raised the prediction even of the fastest network.
        target_ms = max(target_ms, _least_ms(shop))
        found = method.refit(make_problem(shop, target_ms), candidate, target_ms)
        return replace(_in_ms(shop, found), state=answer.state)

    controller = BudgetController(
        measure=measure,
        refit=refit,
        predict=predict,
        smallest_ms=lambda: predicted(shop.latency, shop.table.space.smallest()),
        on_event=shop.folder.emit,
    )
    return controller.settle(answer, believed=believed.trials if believed else ())
