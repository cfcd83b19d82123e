"""Invariants 3, 4, 6, 8, 12 and 15 to 17 of DHP: from latents to the cut network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gated_networks import batch
from resumed_search import check_resumes
from torch import Tensor
from torch.func import functional_call

from hwprune import methods
from hwprune.core.errors import UsageError
from hwprune.core.events import Event, Note
from hwprune.graph import OnnxTemplate, cut, trace
from hwprune.methods import Answer, Problem
from hwprune.methods._dhp_hyper import Collapsed, Factored
from hwprune.methods._dhp_latents import Latents, wire
from hwprune.methods._dhp_search import DhpSearch
from hwprune.methods.dhp import DHP
from hwprune.models import load_model
from hwprune.testing.methods import StaircaseLatency, family, tiny_problem
from hwprune.testing.networks import FAMILIES
from hwprune.training import Classification, TrainPlan, evaluate, load_data, predict, recalibrate_bn, train_dense
from hwprune.training._trainee import ModelTrainee
from hwprune.training.loop import train

every_family = pytest.mark.parametrize("name", FAMILIES)
Keep = dict[str, list[int]]


def started(problem: Problem, **options: Any) -> DhpSearch:
    method = DHP(**{"saliency_images": 16, **options})
    search = DhpSearch(problem, method)
    method._start(problem, search)
    return search


def half_removed(latents: Latents, names: tuple[str, ...]) -> Keep:
    """Random latents, about half of them 0; group -> the units that stay."""
    generator = torch.Generator().manual_seed(3)
    keep: Keep = {}
    with torch.no_grad():
        for name, part in zip(names, latents.split(latents.vector), strict=True):
            kept = torch.randperm(len(part), generator=generator)[: max(1, len(part) // 2)].sort().values
            values = 0.5 + torch.rand(len(kept), generator=generator)
            signs = torch.randint(0, 2, (len(kept),), generator=generator) * 2 - 1
            part.zero_().index_copy_(0, kept, (values * signs).to(part))
            keep[name] = kept.tolist()
    return keep


def removal_error(name: str, dtype: torch.dtype, *, training: bool, biased: bool = False, leak: bool = False) -> float:
    """Largest difference of the network generated with latents of 0 and the network that is cut; relative."""
    made = family(name)
    model = copy.deepcopy(made.model).to(dtype)
    space = made.graph.space()
    latents = Latents(space, next(model.parameters()).detach())
    keep = half_removed(latents, space.names)
    hyper = Factored(model, wire(model, made.graph, space), 2, "gated").to(dtype) if biased else None
    hyper = hyper or Collapsed(model, wire(model, made.graph, space))
    for parameter in hyper.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(dtype) * 0.3
    with torch.no_grad():
        weights = hyper.weights(model, latents.flat(), latents.flat())
        if leak:
            assert isinstance(hyper, Factored)
            flat = latents.flat()
            for parameter in hyper.wiring.generated:
                weights[parameter] = hyper.layer(parameter)(hyper.wiring.factor(parameter, flat, flat, 4))
        full = copy.deepcopy(model)
        full.load_state_dict({**full.state_dict(), **weights})
        small = cut(full, made.graph, keep).train(training)
        images = made.data.train.images[:6].to(dtype)
        generated = functional_call(copy.deepcopy(model).train(training), weights, (images,))
        error = (generated - small(images)).abs().max() / generated.abs().max().clamp_min(1)
    return float(error)


@every_family
def test_3_and_4_a_latent_of_0_is_the_removal_of_its_unit(name: str) -> None:
    assert removal_error(name, torch.float32, training=False) < 1e-5
    assert removal_error(name, torch.float64, training=False) < 1e-12
    assert removal_error(name, torch.float64, training=True) < 1e-12


@pytest.mark.parametrize("name", ["chain", "resnet_option_b", "mobilenetv2"])
def test_3_gated_biases_are_removed_too_and_free_ones_would_not_be(name: str) -> None:
    assert removal_error(name, torch.float64, training=False, biased=True) < 1e-12
    assert removal_error(name, torch.float64, training=True, biased=True) < 1e-12
    assert removal_error(name, torch.float64, training=False, biased=True, leak=True) > 1e-3


@every_family
def test_3_a_latent_of_0_zeroes_its_rows_and_all_its_columns_exactly(name: str) -> None:
    made = family(name)
    space = made.graph.space()
    latents = Latents(space, next(made.model.parameters()).detach())
    keep = half_removed(latents, space.names)
    hyper = Collapsed(made.model, wire(made.model, made.graph, space))
    with torch.no_grad():
        weights = hyper.weights(made.model, latents.flat(), latents.flat())
    for group, kept in keep.items():
        gone = ~np.isin(np.arange(made.graph.group(group).units), kept)
        producers = [s for s in made.graph.producer_slices(group) if s.parameter in hyper.wiring.generated]
        for piece in (*producers, *made.graph.consumer_slices(group)):
            removed = torch.from_numpy(piece.positions[gone[piece.units]])
            assert float(weights[piece.parameter].index_select(piece.dim, removed).abs().sum()) == 0.0
            stays = torch.from_numpy(piece.positions[~gone[piece.units]])
            assert float(weights[piece.parameter].index_select(piece.dim, stays).abs().sum()) > 0.0


@every_family
def test_the_dense_network_is_recovered_at_step_0(name: str) -> None:
    problem = tiny_problem(name)
    images, _ = batch(problem)
    for backend in ("collapsed", "factored"):
        search = started(problem, backend=backend, embedding=2)
        search.model.eval()
        if backend == "collapsed":
            assert torch.equal(search.outputs(images), problem.model(images))
        else:
            torch.testing.assert_close(search.outputs(images), problem.model(images), rtol=1e-4, atol=1e-4)


def test_6_optimiser_step_then_proximal_step_once_a_step_until_the_budget_is_met() -> None:
    problem = tiny_problem(budget=0.6)
    search = started(problem)
    calls: list[str] = []
    (optimizer,) = search.optimizers()
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    shrink = search.latents.shrink

    def watched(*arguments: Any) -> None:
        calls.append("shrink")
        shrink(*arguments)

    search.latents.shrink = watched  # type: ignore[method-assign]
    train(search, problem.data, plan=problem.plan)
    assert search.frozen
    shrunk = calls.count("shrink")
    assert 0 < shrunk < search.steps == 12
    assert calls == ["step", "shrink"] * shrunk + ["step"] * (search.steps - shrunk)


def test_6_a_group_that_may_not_be_cut_never_loses_a_unit() -> None:
    problem = tiny_problem("mobilenetv2", tile=16)
    fixed = [place for place, allowed in enumerate(problem.space.widths) if len(allowed) == 1]
    assert 0 < len(fixed) < len(problem.space.widths)
    search = started(replace(problem, target_ms=0.8 * problem.dense_ms), latent_lr=1e-6)
    train(search, problem.data, plan=problem.plan)
    parts = search.latents.split(search.latents.values().detach())
    assert all(float(parts[place].min()) > 0.99 for place in fixed)
    assert any(float(part.min()) == 0 for part in parts)


@pytest.mark.parametrize("name", ["resnet_option_a", "resnet_option_b", "mobilenetv2", "squeeze_excite"])
def test_8_the_gradient_of_a_shared_latent_is_the_sum_over_its_members(name: str) -> None:
    problem = tiny_problem(name)
    model = copy.deepcopy(problem.model).double()
    latents = Latents(problem.space, next(model.parameters()).detach(), normalise=False)
    hyper = Collapsed(model, wire(model, problem.graph, problem.space))
    images = problem.data.train.images[:4].double()

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        return functional_call(model, dict(weights), (images,)).square().mean()  # type: ignore[no-any-return]

    (shared,) = torch.autograd.grad(loss(hyper.weights(model, latents.flat(), latents.flat())), latents.vector)
    own = {n: latents.flat().detach().requires_grad_() for n in hyper.wiring.names}
    separate = {n: hyper.weights(model, flat, flat)[n] for n, flat in own.items()}
    parts = torch.autograd.grad(loss(separate), list(own.values()))
    torch.testing.assert_close(shared, torch.stack(parts).sum(0)[:-1], rtol=1e-9, atol=1e-12)
    assert sum(float(part.abs().sum()) > 0 for part in parts) > len(problem.space.groups)


def test_8_members_of_a_group_have_one_width_and_weights_of_their_own() -> None:
    problem = tiny_problem("resnet_option_b", 0.5)
    answer = list(DHP(saliency_images=16).search(problem))[-1]
    small = cut(problem.model, problem.graph, answer.keep)
    shared = [group for group in problem.space.groups if len(group.producers) > 1]
    assert shared
    for group in shared:
        rows = {small.get_parameter(f"{producer}.weight").shape[0] for producer in group.producers}
        assert rows == {answer.widths[group.name]}
    search = started(problem, backend="factored", embedding=2)
    assert isinstance(search.hyper, Factored)
    layers = [search.hyper.layer(f"{producer}.weight").second for producer in shared[0].producers]
    assert len({id(layer) for layer in layers}) == len(layers)


@pytest.mark.parametrize("options", [{}, {"debias": False}, {"backend": "factored", "embedding": 2, "biases": "gated"}])
@pytest.mark.parametrize(
    "name", ["chain", "resnet_option_b", "mobilenetv2", "densenet", "squeeze_excite", "registered", "tied"]
)
def test_12_the_masked_hypernetworks_and_the_plain_network_agree(name: str, options: dict[str, Any]) -> None:
    problem = tiny_problem(name, 0.6)
    search = started(problem, **options)
    train(search, problem.data, plan=problem.plan)
    state, scores = search.plain_state(), search.scores()
    assert list(state) == list(problem.model.state_dict())
    answer = DHP().refit(problem, Answer(search.widths(), {}, 0.0, scores, state), problem.target_ms)
    assert answer.widths == search.widths()
    full = copy.deepcopy(problem.model)
    full.load_state_dict(state)
    images, _ = batch(problem)
    search.model.eval()
    with torch.no_grad():
        small = cut(full, problem.graph, answer.keep)
        error = (search.outputs(images) - small(images)).abs().max()
    assert float(error) < 1e-5
    optimised = [
        p
        for o in ModelTrainee(small, problem.task, problem.plan).optimizers()
        for g in o.param_groups
        for p in g["params"]
    ]
    assert {id(parameter) for parameter in optimised} == {id(parameter) for parameter in small.parameters()}


def test_12_the_plain_network_can_be_exported() -> None:
    problem = tiny_problem("chain", 0.6)
    (answer,) = DHP(saliency_images=16).search(problem)
    template = OnnxTemplate.export(problem.model, problem.graph)
    full = copy.deepcopy(problem.model)
    assert answer.state is not None
    full.load_state_dict(dict(answer.state))
    exported = template.with_state(answer.keep, cut(full, problem.graph, answer.keep).state_dict())
    assert 0 < len(exported) < len(template.dense)


@pytest.mark.parametrize("backend", ["collapsed", "factored"])
@every_family
def test_15_every_prunable_latent_gets_a_gradient(name: str, backend: str) -> None:
    problem = tiny_problem(name)
    search = started(problem, backend=backend, embedding=2, distill_alpha=0.0)
    search.loss(*batch(problem, 16), progress=0.0).backward()
    gradient = search.latents.vector.grad
    assert gradient is not None
    assert bool(torch.isfinite(gradient).all())
    for group, part in zip(problem.space.names, search.latents.split(gradient), strict=True):
        assert float((part != 0).float().mean()) > 0.7, group
    readers = search._reader_gradient
    assert readers is not None
    assert all(float(part.abs().max()) > 0 for part in search.latents.split(readers[:-1]))


@pytest.mark.parametrize("options", [{}, {"backend": "factored", "embedding": 2, "start": "hyper_fan_in"}])
def test_16_a_resumed_search_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    problem = tiny_problem(budget=0.5)
    problem = replace(problem, plan=replace(problem.plan, schedule="cosine"))
    check_resumes(DHP(saliency_images=16, **options), problem, tmp_path, 4, 10)


def small_digits() -> Problem:
    """A narrow digits network, trained for a second, to be cut to half of its latency."""
    data = load_data("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = load_model("digits_resnet?width=0.25")
    train_dense(model, data, plan=TrainPlan(epochs=3, lr=0.1))
    graph = trace(model.eval(), torch.zeros(1, 1, 8, 8))
    space = graph.space(tile=4)
    latency = StaircaseLatency.of(graph, space, 4)
    dense_ms = float(latency.predict_batch(np.array([space.dense().values_tuple()]))[0])
    plan = TrainPlan(epochs=1, lr=0.01, schedule="cosine", weight_decay=1e-4)
    return Problem(model, graph, space, latency, dense_ms, 0.5 * dense_ms, data, Classification(), plan)


def test_17_the_units_kept_beat_random_ones_at_equal_latency() -> None:
    problem = small_digits()
    reference = predict(problem.model, problem.data)

    def distance(name: str, seed: int) -> float:
        posed = replace(problem, seed=seed)
        answer = list(methods.load(name)(saliency_images=256).search(posed))[-1]
        # The dense weights for both: the choice of units alone is judged.
        small = recalibrate_bn(cut(posed.model, posed.graph, answer.keep), posed.data)
        found = evaluate(small, posed.data, reference=reference).kl
        assert found is not None
        return found

    for seed in range(3):
        assert distance("dhp", seed) < 0.9 * distance("random", seed)


def test_planted_irrelevant_channels_go_first() -> None:
    problem = tiny_problem("chain", 0.6, tile=1)
    model = copy.deepcopy(problem.model)
    group = problem.space.groups[1]
    dead = np.arange(group.units) % 2 == 1
    with torch.no_grad():
        for piece in problem.graph.consumer_slices(group.name):
            columns = torch.from_numpy(piece.positions[dead[piece.units]])
            model.get_parameter(piece.parameter).index_fill_(piece.dim, columns, 0.0)
    (answer,) = DHP(saliency_images=48).search(replace(problem, model=model))
    assert answer.widths[group.name] <= math.ceil(group.units / 2)
    scores = answer.scores[group.name]
    assert float(scores[dead].max()) < float(scores[~dead].max())
    assert not dead[list(answer.keep[group.name])].any() or dead.sum() < group.units - answer.widths[group.name]


def test_a_looser_target_brings_back_units_that_are_not_zero() -> None:
    problem = tiny_problem("mobilenetv2", 0.4, tile=1)
    (answer,) = DHP(saliency_images=16).search(problem)
    wider = DHP().refit(problem, answer, 0.7 * problem.dense_ms)
    assert all(set(answer.keep[name]) <= set(wider.keep[name]) for name in answer.keep)
    back = {name: sorted(set(wider.keep[name]) - set(answer.keep[name])) for name in answer.keep}
    assert sum(len(units) for units in back.values()) > 5
    assert answer.state is not None
    for name, units in back.items():
        for piece in problem.graph.consumer_slices(name):
            positions = torch.from_numpy(piece.positions[np.isin(piece.units, units)])
            columns = answer.state[piece.parameter].index_select(piece.dim, positions).movedim(piece.dim, 0)
            assert bool((columns.flatten(1).abs().sum(1) > 0).all())


def test_proximal_steps_do_not_make_weights_small() -> None:
    problem = tiny_problem("resnet_option_b", 0.5)
    problem = replace(problem, plan=replace(problem.plan, epochs=6))

    def size(state: Mapping[str, Tensor], keep: Mapping[str, Any]) -> float:
        full = copy.deepcopy(problem.model)
        full.load_state_dict(dict(state))
        small = cut(full, problem.graph, keep)
        filters = [p.detach().flatten() for p in small.parameters() if p.ndim > 2]
        return float(torch.cat(filters).square().mean().sqrt())

    ratios = []
    for options in ({}, {"normalise": False}, {"normalise": False, "debias": False}):
        (answer,) = DHP(saliency_images=16, **options).search(problem)
        assert answer.state is not None
        ratios.append(size(answer.state, answer.keep) / size(problem.model.state_dict(), answer.keep))
    assert all(0.7 < ratio < 1.4 for ratio in ratios[:2])
    assert ratios[2] < 0.6


def test_a_search_from_drawn_weights_ends_within_budget_and_says_how_large_it_is() -> None:
    events: list[Event] = []
    problem = replace(tiny_problem(budget=0.6), on_event=events.append)
    options = {"backend": "factored", "embedding": 2, "start": "hyper_fan_in", "biases": "gated"}
    (answer,) = methods.load("dhp")(**options).search(problem)
    assert answer.predicted_ms <= problem.target_ms
    assert answer.image_passes == 12 * 8
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("hypernetworks of" in text and "weights of convolutions" in text for text in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "factord"}, "backend cannot be 'factord'. Did you mean 'factored'"),
        ({"biases": "free"}, "biases cannot be 'free'"),
        ({"penalty": -1.0}, "penalty must be 0 or more, not -1.0"),
        ({"threshold": math.nan}, "threshold must be positive, not nan"),
        ({"arrival": 1.5}, r"arrival must be a share between 0 and 1, not 1.5"),
        ({"embedding": 0}, "embedding must be 1 or more, not 0"),
    ],
)
def test_a_bad_option_of_dhp_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DHP(**options)
