"""What a search may spend: images of the whole run and memory; how it is cut, and when there is too little."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hwprune.core.errors import MethodGaveUp
from hwprune.core.events import Event, Note
from hwprune.methods import Problem
from hwprune.methods._metapruning_budget import Spending, shared_out, within_image_budget
from hwprune.methods._metapruning_net import PruningNet, parameter_count
from hwprune.methods._metapruning_search import Judge
from hwprune.methods._saliency import weight_norm
from hwprune.methods.metapruning import MetaPruning
from hwprune.testing.methods import tiny_problem
from hwprune.training.data import ArraySet, Data

QUICK: dict[str, Any] = {"hidden": 2, "evaluations": 12, "population": 4, "parents": 3, "recalibration_images": 32}


def problem_of(train: int, val: int, epochs: float = 2) -> Problem:
    """The chain with so many images, each set the same few again and again."""
    problem = tiny_problem("chain", 0.6, tile=1)

    def grown(images: ArraySet, count: int) -> ArraySet:
        chosen = torch.arange(count) % len(images)
        return ArraySet(images.images[chosen], images.targets[chosen])

    data = replace(problem.data, train=grown(problem.data.train, train), val=grown(problem.data.val, val))
    return replace(problem, data=data, plan=replace(problem.plan, epochs=epochs))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The images that really leave each split; the figures told after an epoch are left out."""
    counts: Counter[str] = Counter()
    batch = Data.batch

    def counted(self: Data, split: Any, indices: Tensor, generator: Any = None) -> tuple[Tensor, Tensor]:
        counts[split] += len(indices)
        return batch(self, split, indices, generator)

    monkeypatch.setattr(Data, "batch", counted)
    monkeypatch.setattr(Judge, "probes", lambda self: {"middle_score": 1.0, "dense_score": 1.0})
    return counts


def test_the_search_sees_no_more_than_half_of_the_images_and_says_what_it_saw(seen: Counter[str]) -> None:
    events: list[Event] = []
    problem = replace(problem_of(192, 130), image_budget=4000, on_event=events.append)
    options = MetaPruning(**{**QUICK, "evaluations": 30, "recalibration_images": 192})
    (answer,) = options.search(problem)
    assert answer.predicted_ms <= problem.target_ms
    backward = 192 + 2 * 192  # saliency and training as without a bound
    forward = seen["train"] + seen["val"] - backward
    assert 0.9 * 2000 < backward + forward / 3 <= 2000
    assert answer.image_passes == round(backward + forward / 3)
    (text,) = [event.text for event in events if isinstance(event, Note) and "images of the run" in event.text]
    assert text.startswith("of the 4000 images of the run the search may see 2000, so: candidates ")
    assert "recalibration images 128 in place of 192" in text


def test_without_a_bound_or_with_a_wide_one_nothing_is_cut(seen: Counter[str]) -> None:
    events: list[Event] = []
    problem = replace(tiny_problem("chain", 0.6, tile=1), on_event=events.append)
    options = MetaPruning(**QUICK)
    assert within_image_budget(problem, options) == (problem, options)
    wide = replace(problem, image_budget=2 * (48 + 96 + 12 * (32 + 8) // 3))
    assert within_image_budget(wide, options) == (wide, options)
    assert events == []
    (answer,) = options.search(problem)
    assert seen == {"train": 48 + 96 + 12 * 32, "val": 12 * 8}
    assert answer.image_passes == 48 + 96 + 12 * (32 + 8) // 3


def test_number_and_size_of_the_candidates_shrink_alike() -> None:
    wanted = Spending(saliency=1024, steps=35, evaluations=200, recalibration=5120, validation=10000)
    spending = shared_out(wanted, 1024 + 35 * 64 + 200 * 15120 / 3 / 16, 64)
    assert (spending.saliency, spending.steps) == (1024, 35)
    assert (spending.recalibration, spending.validation) == (1280, 2500)
    assert spending.evaluations == 50


def test_images_shrink_to_128_and_saliency_and_training_to_their_shares() -> None:
    wanted = Spending(saliency=1024, steps=100, evaluations=200, recalibration=512, validation=1000)
    spending = shared_out(wanted, 2048, 64)
    assert spending == Spending(saliency=512, steps=12, evaluations=9, recalibration=128, validation=128)
    for allowed in (300, 1000, 5000, 20000, 60000):
        assert shared_out(wanted, allowed, 64).images(64) <= allowed


def test_the_problem_is_cut_to_a_fixed_random_subset_of_the_validation_images() -> None:
    problem = replace(problem_of(1000, 600, epochs=9), image_budget=12000)
    limited, options = within_image_budget(problem, MetaPruning(evaluations=60, population=4))
    assert limited.plan.epochs < 9
    assert round(limited.plan.epochs * (1000 // 8)) * 8 <= 0.5 * (6000 - 1000)
    assert 128 <= len(limited.data.val) < 600
    again, _ = within_image_budget(problem, MetaPruning(evaluations=60, population=4))
    assert torch.equal(again.data.val.images, limited.data.val.images)
    assert (limited.data.train, limited.data.test) == (problem.data.train, problem.data.test)
    assert len(problem.data.val) == 600
    assert options.population <= options.evaluations < 60


def test_too_little_for_one_generation_is_refused_before_any_training(seen: Counter[str]) -> None:
    problem = replace(problem_of(48, 8), image_budget=300)
    with pytest.raises(
        MethodGaveUp, match=r"of the 300 images .* may see 150: enough for \d candidates.*has 12"
    ) as caught:
        list(MetaPruning(**{**QUICK, "population": 12}).search(problem))
    assert "raise --total-epochs" in caught.value.hint
    assert not seen


def test_a_pruning_net_too_large_says_its_size_and_what_shrinks_it() -> None:
    problem = tiny_problem("chain", 0.6, tile=1)
    scores = weight_norm(problem.model, problem.graph, problem.space, "l1")

    def gib(hidden: int) -> float:
        count = parameter_count(problem.model, problem.graph, problem.space, hidden, "block")
        net = PruningNet(problem.model, problem.graph, problem.space, scores, hidden=hidden)
        assert count == sum(p.numel() for p in net.parameters())
        return 4 * 5 * count / 2**30  # weights, gradients, momentum, and what a checkpoint holds

    with pytest.raises(
        MethodGaveUp, match=r"PruningNet has .* parameters \(hidden=32\): .*iB in training, and"
    ) as caught:
        list(MetaPruning(**{**QUICK, "hidden": 32}, memory_gb=gib(5)).search(problem))
    assert "--set hidden=5 fits" in caught.value.hint
    with pytest.raises(MethodGaveUp, match="PruningNet has") as caught:
        list(MetaPruning(**QUICK, memory_gb=0.5 * gib(0)).search(problem))
    assert "too large to be trained here" in caught.value.hint
