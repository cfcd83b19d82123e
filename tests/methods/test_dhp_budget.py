"""Invariants 10 and 11 of DHP: what is counted, and when the budget counts as met."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwprune.core.errors import MethodGaveUp
from hwprune.core.events import Caution, Event, Note, SearchStep
from hwprune.core.units import percent
from hwprune.graph import cut, trace
from hwprune.methods import Answer, Problem, _dhp_search
from hwprune.methods._dhp_budget import needed_travel
from hwprune.methods._dhp_search import DhpSearch
from hwprune.methods.dhp import DHP
from hwprune.models import load_model
from hwprune.testing.methods import StaircaseLatency, tiny_problem
from hwprune.training.loop import train


def started(problem: Problem, **options: Any) -> DhpSearch:
    method = DHP(**{"saliency_images": 16, **options})
    search = DhpSearch(problem, method)
    method._start(problem, search)
    return search


def searched(problem: Problem, **options: Any) -> tuple[Answer, list[Event]]:
    events: list[Event] = []
    (answer,) = DHP(**{"saliency_images": 16, **options}).search(replace(problem, on_event=events.append))
    return answer, events


def counted(model: nn.Module, images: Tensor) -> int:
    """MACs of convolutions and linear layers, seen by hooks; for one image."""
    macs = 0

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.ConvTranspose2d):
            macs += inputs[0][0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Conv2d):
            macs += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += output[0].numel() * module.in_features

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return macs


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, middle: int, stride: int) -> None:
        super().__init__()
        c_out = 4 * middle
        convs = (nn.Conv2d(c_in, middle, 1, bias=False), nn.Conv2d(middle, middle, 3, stride, 1, bias=False))
        self.convs = nn.ModuleList([*convs, nn.Conv2d(middle, c_out, 1, bias=False)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(middle), nn.BatchNorm2d(middle), nn.BatchNorm2d(c_out)])
        projection = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.shortcut = projection if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv, norm in zip(self.convs, self.norms, strict=True):
            out = norm(conv(torch.relu(out)))
        return out + self.shortcut(x)  # type: ignore[no-any-return]


def bottleneck_resnet(depth: int) -> nn.Module:
    """ResNet of bottlenecks for 32x32 images with (depth - 2) / 9 blocks a stage, as the paper's code builds it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)]
    c_in = 16
    for middle in (16, 32, 64):
        for block in range((depth - 2) // 9):
            layers.append(_Bottleneck(c_in, middle, 2 if block == 0 and middle > 16 else 1))
            c_in = 4 * middle
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("resnet20?option=B", 41.21e6),
        ("resnet56?option=B", 126.84e6),
        ("110", 171.90e6),
        ("164", 254.18e6),
    ],
)
def test_10_the_graph_counts_what_the_paper_s_code_counts_at_full_width(name: str, golden: float) -> None:
    model = bottleneck_resnet(int(name)) if name.isdigit() else load_model(name)
    graph = trace(model.eval(), torch.zeros(1, 3, 32, 32), verify=False)
    norms = sum(op.out_channels * op.out_size[0] * op.out_size[1] for op in graph.ops({}) if op.kind == "norm")
    assert graph.macs(graph.dense()) + 2 * norms == pytest.approx(golden, abs=0.005e6)


@pytest.mark.parametrize("name", ["resnet_option_b", "mobilenetv2", "unet"])
def test_10_the_share_of_macs_is_that_of_the_cut_network(name: str) -> None:
    problem = tiny_problem(name, 0.6)
    search = started(problem)
    train(search, problem.data, plan=problem.plan)
    answer = DHP().refit(problem, Answer(search.widths(), {}, 0.0, search.scores()), problem.target_ms)
    images = problem.data.train.images[:1]
    small = cut(problem.model, problem.graph, answer.keep)
    share = counted(small, images) / counted(problem.model, images)
    assert search._figures()["macs"] == pytest.approx(share)


def test_11_the_first_check_within_the_budget_ends_the_proximal_steps_and_is_logged() -> None:
    _, events = searched(tiny_problem(budget=0.6), penalty=60.0, latent_lr=0.01, report_every=1)
    (met,) = [event.text for event in events if isinstance(event, Note) and "met the budget" in event.text]
    steps = [event for event in events if isinstance(event, SearchStep)]
    first = next(step for step in steps if step.metrics["penalty"] == 0.0)
    assert f"after {first.step} of 12 steps" in met
    assert f"cost {percent(first.metrics['cost'])} of dense" in met
    assert first.metrics["cost"] <= 0.6
    assert all(step.metrics["cost"] > 0.6 for step in steps if step.step < first.step)
    assert 1 < first.step < 12


@pytest.mark.parametrize("efficiency", ["latency", "macs"])
def test_11_a_budget_that_is_not_reached_is_an_error_with_the_cost_at_the_end(efficiency: str) -> None:
    problem = tiny_problem(budget=0.6)
    options: dict[str, Any] = {"penalty": 4.0, "latent_lr": 0.01, "efficiency": efficiency, "saliency_images": 16}
    search = started(problem, **options)
    train(search, problem.data, plan=problem.plan)
    images = problem.data.train.images[:1]
    live = {name: list(range(width)) for name, width in search.widths().items()}
    share = search.problem.latency.predict(search.widths()).latency_ms / problem.dense_ms
    if efficiency == "macs":
        share = counted(cut(problem.model, problem.graph, live), images) / counted(problem.model, images)
    assert search.target < share < 0.99
    with pytest.raises(MethodGaveUp, match=r"12 steps with penalty=4 did not shrink the latents to the budget") as bad:
        list(DHP(**options).search(problem))
    assert (
        f"costs {percent(share)} of dense ({efficiency}), the target is {percent(search.target)}" in bad.value.message
    )
    assert "penalty=0" in bad.value.hint


def test_11_a_budget_met_since_the_last_look_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dhp_search, "_LEAST_REFRESHES", 1)  # looks after 7 of the 12 steps, and at the end
    problem = tiny_problem(budget=0.6)
    answer, events = searched(problem, penalty=10.0, latent_lr=0.01, report_every=1)
    steps = {event.step: event.metrics for event in events if isinstance(event, SearchStep)}
    assert steps[7]["cost"] > 0.6
    assert steps[12]["penalty"] > 0
    assert answer.predicted_ms <= problem.target_ms
    assert any(isinstance(event, Note) and "met the budget after 12 of 12" in event.text for event in events)


def test_11_without_a_fixed_penalty_the_budget_is_met_at_the_arrival() -> None:
    for budget in (0.8, 0.5, 0.35):
        _, events = searched(tiny_problem(budget=budget), arrival=0.5, report_every=1)
        penalties = [event.metrics["penalty"] for event in events if isinstance(event, SearchStep)]
        assert max(penalties) > 0
        assert all(penalty == 0 for penalty in penalties[5:])


def test_11_the_penalty_is_for_the_units_that_live() -> None:
    """Also in groups at their least width, which cost nothing more and do not shrink."""
    problem = tiny_problem("mobilenetv2", 0.6)
    search = started(problem)
    size = torch.rand(search.latents.vector.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        search.latents.vector.copy_(size)
        for part, least in zip(search.latents.split(search.latents.vector)[::2], search.least[::2], strict=True):
            part[least:] = 0.0
    search.refresh(1)
    assert 0 < sum(price == 0 for price in search.prices) < len(search.prices)
    lifetimes = search.latents.split(search._lifetimes())
    assert problem.space.snap([float((part > 0).sum()) for part in lifetimes]) == search.widths()
    assert any(bool(torch.isinf(part).any()) for part in lifetimes)
    assert needed_travel(search.efficiency, problem.space, [p.numpy() for p in lifetimes], search.cost) == 0.0


@pytest.mark.parametrize("moving", [True, False])
def test_11_what_the_proximal_steps_did_not_reach_is_cut_at_once_and_said(
    monkeypatch: pytest.MonkeyPatch, moving: bool
) -> None:
    problem = tiny_problem("mobilenetv2", 0.6)
    events: list[Event] = []
    problem = replace(problem, plan=replace(problem.plan, epochs=0.5), on_event=events.append)
    search = started(problem)
    if not moving:
        monkeypatch.setattr(search.latents, "shrink", lambda thresholds, least: None)
    removed: list[tuple[Tensor, Tensor]] = []
    remove = search.latents.remove

    def watched(mask: Tensor, scores: Tensor, *, debias: bool) -> None:
        removed.append((search.latents.vector.detach().abs() >= 5e-3, mask))
        remove(mask, scores, debias=debias)

    monkeypatch.setattr(search.latents, "remove", watched)
    train(search, problem.data, plan=problem.plan)
    ((live, kept),) = removed
    counts = [float(part.sum()) for part in search.latents.split(live)]
    before = problem.latency.predict(problem.space.snap(counts)).latency_ms / problem.dense_ms
    assert before == 1.0 if not moving else 0.6 < before < 0.9
    (caution,) = [event for event in events if isinstance(event, Caution)]
    assert f"did not meet the budget in 2 of 3 steps: what was live cost {percent(before)} of dense" in caution.text
    share = float((live & ~kept).sum() / live.sum())
    assert f"the target is 60.0 %. {percent(share)} of the live units were cut at once, to 59" in caution.text
    assert "more epochs" in caution.hint
    assert not [event for event in events if isinstance(event, Note) and "met the budget" in event.text]


def test_11_steps_that_are_skipped_before_the_arrival_end_in_a_cut_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The penalty is the search's own: nobody is told to set it to what it is."""
    loss, asked = DhpSearch.loss, 0

    def spoiled(search: DhpSearch, images: Tensor, targets: Tensor, progress: float) -> Tensor:
        nonlocal asked
        asked += 1
        return loss(search, images, targets, progress) * (float("nan") if asked > 6 else 1.0)

    monkeypatch.setattr(DhpSearch, "loss", spoiled)
    problem = tiny_problem("mobilenetv2", 0.6)
    problem = replace(problem, plan=replace(problem.plan, epochs=2, max_bad_steps=10))
    answer, events = searched(problem)
    assert answer.predicted_ms <= problem.target_ms
    (caution,) = [event for event in events if isinstance(event, Caution) and "did not meet" in event.text]
    assert "were cut at once" in caution.text


def test_only_a_group_that_may_vanish_can_lose_its_last_latent() -> None:
    problem = tiny_problem("resnet_option_b")
    space = problem.graph.space(tile=4, min_keep=0.25, depth=True)
    latency = StaircaseLatency.of(problem.graph, space)
    problem = replace(problem, space=space, latency=latency)
    search = started(problem, latency_weight=1.0)
    vanishing = [group.skippable for group in space.groups]
    assert 0 < sum(vanishing) < len(vanishing)
    search.latents.shrink(torch.full_like(search.latents.vector, 5.0), search.least)
    live = [int((part != 0).sum()) for part in search.latents.split(search.latents.vector.detach())]
    assert [count == 0 for count in live] == vanishing
    assert [width == 0 for width in search.widths().values_tuple()] == vanishing
    search.refresh(1)
    assert bool(torch.isfinite(search.latency_loss()))


@pytest.mark.parametrize(("missed", "kind"), [(1.005, Note), (1.02, Caution)])
def test_11_missing_the_budget_by_less_than_a_percent_is_meeting_it(missed: float, kind: type[Event]) -> None:
    events: list[Event] = []
    search = started(replace(tiny_problem(budget=0.6), on_event=events.append))
    search.cost = missed * search.target
    search._tell_arrival(0.1, 0.0, 0.59)
    assert [type(event) for event in events] == [kind]


@pytest.mark.parametrize("options", [{"penalty": 1e9}, {"threshold": 10.0}])
def test_an_overshoot_is_no_arrival(options: dict[str, float]) -> None:
    events: list[Event] = []
    (answer,) = DHP(saliency_images=16, **options).search(replace(tiny_problem(), on_event=events.append))
    assert answer.predicted_ms <= tiny_problem().target_ms
    (told,) = [event for event in events if isinstance(event, Caution) and "overshot" in event.text]
    assert "were reopened at once" in told.text
    assert not [event for event in events if isinstance(event, Note) and "met the budget" in event.text]
