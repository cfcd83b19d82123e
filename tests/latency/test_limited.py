"""Limits beside a latency: kept exactly where they should be, with the slope of the tightest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hwprune.core.errors import BudgetInfeasible
from hwprune.core.widths import Limits, SearchSpace
from hwprune.graph import ChannelGraph
from hwprune.latency.features import IntArray
from hwprune.latency.limited import LimitedLatency, check_limits, tightest
from hwprune.latency.secant import SecantLatency
from hwprune.methods._adjust import fit_to_target
from hwprune.testing.methods import StaircaseLatency, family

TILE = 4


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return family("resnet_option_b").graph


@pytest.fixture(scope="module")
def space(graph: ChannelGraph) -> SearchSpace:
    return graph.space(tile=TILE, min_keep=0.25)


@pytest.fixture(scope="module")
def latency(graph: ChannelGraph, space: SearchSpace) -> StaircaseLatency:
    return StaircaseLatency.of(graph, space, TILE)


@pytest.fixture(scope="module")
def everything(space: SearchSpace) -> IntArray:
    """All networks of the space, or 4,000 of them."""
    rows = np.array(list(itertools.islice(itertools.product(*space.widths), 200_000)), dtype=np.int64)
    return np.random.default_rng(0).permutation(rows)[:4000]


@pytest.mark.parametrize("share", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("which", [("params",), ("macs",), ("params", "macs")])
def test_it_is_within_exactly_where_latency_and_limits_are(
    graph: ChannelGraph,
    space: SearchSpace,
    latency: StaircaseLatency,
    everything: IntArray,
    which: tuple[str, ...],
    share: float,
) -> None:
    dense = {"params": graph.params(space.dense()), "macs": graph.macs(space.dense())}
    limits = Limits(**{name: int(share * dense[name]) for name in which})
    target_ms = 0.6 * float(latency.predict_batch(everything).max())
    found = LimitedLatency(latency, graph, limits, target_ms).predict_batch(everything) <= target_ms
    expected = []
    for row in everything:
        widths = space.make(row.tolist())
        has = {"params": graph.params(widths), "macs": graph.macs(widths)}
        kept = all(has[name] <= getattr(limits, name) for name in which)
        expected.append(kept and latency.predict(widths).latency_ms <= target_ms)
    np.testing.assert_array_equal(found, expected)
    assert 0 < sum(expected) < len(expected)


def test_without_a_limit_that_binds_it_is_the_latency(
    graph: ChannelGraph, space: SearchSpace, latency: StaircaseLatency, everything: IntArray
) -> None:
    loose = LimitedLatency(latency, graph, Limits(params=10**12), target_ms=1.0)
    np.testing.assert_array_equal(loose.predict_batch(everything), latency.predict_batch(everything))
    assert (loose.step, loose.space) == (latency.step, space)


def test_the_slope_is_that_of_what_binds(graph: ChannelGraph, space: SearchSpace, latency: StaircaseLatency) -> None:
    most, target_ms = graph.params(space.dense()) // 2, 0.9
    limited = LimitedLatency(latency, graph, Limits(params=most), target_ms)
    widths = torch.tensor([float(allowed[-1]) for allowed in space.widths], requires_grad=True)
    cost_ms = SecantLatency(limited, space)(widths)
    cost_ms.backward()
    assert cost_ms.item() == pytest.approx(target_ms * graph.params(space.dense()) / most)
    for place, (name, allowed) in enumerate(zip(space.names, space.widths, strict=True)):
        narrower = graph.params(space.dense().replace(name, allowed[-2]))
        slope = target_ms * (graph.params(space.dense()) - narrower) / most / (allowed[-1] - allowed[-2])
        assert widths.grad is not None
        assert widths.grad[place].item() == pytest.approx(slope, rel=1e-5)


def test_a_fit_uses_the_limit_that_binds_first(
    graph: ChannelGraph, space: SearchSpace, latency: StaircaseLatency
) -> None:
    scores = {group.name: np.random.default_rng(1).random(group.units) for group in space.groups}
    dense_ms = latency.predict(space.dense()).latency_ms
    most = int(0.5 * graph.params(space.dense()))
    limits = Limits(params=most)
    fit = fit_to_target(space, LimitedLatency(latency, graph, limits, 0.95 * dense_ms), scores, 0.95 * dense_ms)
    assert 0.95 * most < graph.params(fit.widths) <= most
    assert latency.predict(fit.widths).latency_ms < 0.9 * dense_ms
    found = tightest(graph, space, limits, fit.widths)
    assert found == ("params", pytest.approx(graph.params(fit.widths) / most))
    assert tightest(graph, space, Limits(), fit.widths) is None


def test_a_limit_that_no_network_keeps(graph: ChannelGraph, space: SearchSpace) -> None:
    least = graph.macs(space.smallest())
    check_limits(graph, space, Limits(macs=least))
    with pytest.raises(BudgetInfeasible, match=r"no network of this space has at most .* MACs: the smallest allowed"):
        check_limits(graph, space, Limits(macs=least - 1))
