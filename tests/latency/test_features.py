"""Work by layer against a slow reference that asks every operator template for itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwprune.core.errors import TableError, UsageError
from hwprune.core.ops import ChannelCount, OpTemplate
from hwprune.core.widths import ChannelGroup, SearchSpace, Widths
from hwprune.latency.features import Work, restrict, role, widths_array
from hwprune.testing.staircase import staircase_ops, staircase_samples, staircase_space

SPACE = staircase_space(8)
OPS = staircase_ops()


def _up(channels: int, tile: int) -> int:
    return math.ceil(channels / tile) * tile


def _slow_macs(op: OpTemplate, widths: Widths, tile: int) -> float:
    key = op.at(widths)
    inputs = key.in_channels if op.name == "stem" else _up(key.in_channels, tile)
    groups = _up(key.groups, tile) if key.groups > 1 else 1
    taps, area = key.kernel[0] * key.kernel[1], key.out_size[0] * key.out_size[1]
    return area * taps * inputs * _up(key.out_channels, tile) / groups if op.kind in ("conv", "linear") else 0.0


@pytest.mark.parametrize("tile", [1, 16])
def test_macs_match_the_slow_reference(tile: int) -> None:
    values = staircase_samples(30, tile=8).values
    work = Work(OPS, SPACE, tile)
    expected = [[_slow_macs(op, SPACE.make(list(row)), tile) for op in OPS] for row in values.tolist()]
    np.testing.assert_allclose(work.layers(values).macs, expected)


def test_without_a_tile_macs_are_those_of_the_operators() -> None:
    values = staircase_samples(10, tile=8).values
    totals = Work(OPS, SPACE, 1).layers(values).macs.sum(axis=1)
    assert totals.tolist() == [sum(op.at(SPACE.make(list(row))).macs for op in OPS) for row in values.tolist()]


def test_work_is_flat_inside_a_tile() -> None:
    work = Work(OPS, SPACE, 16)
    dense = SPACE.dense()
    rows = widths_array(SPACE, [dense.replace("head", width) for width in (8, 16, 24, 32)])
    head = work.layers(rows).macs[:, work.ops.index(next(op for op in OPS if op.name == "head"))]
    assert head[0] == head[1]
    assert head[2] == head[3] == 2 * head[1]


def test_terms_are_sums_of_layers() -> None:
    work = Work(OPS, SPACE, 16)
    values = staircase_samples(5).values
    terms = dict(zip(work.term_names, work.terms(values).T, strict=True))
    macs = work.layers(values).macs
    roles = np.array(work.roles)
    np.testing.assert_allclose(terms["pointwise MACs"], macs[:, roles == "pointwise"].sum(axis=1))
    np.testing.assert_allclose(terms["depthwise MACs"], macs[:, roles == "depthwise"].sum(axis=1))
    assert "spatial MACs" not in terms  # the network has no dense 3x3 convolution


def test_weights_beyond_a_cache_count_from_its_size_on() -> None:
    channels = ChannelCount(0, (("g", 1),))
    space = SearchSpace((ChannelGroup("g", 1024),), ((256, 512, 1024),))
    work = Work((OpTemplate("conv", "conv", channels, channels),), space, 16)
    terms = dict(zip(work.term_names, work.terms([[256], [512], [1024]]).T, strict=True))
    assert terms["weights beyond 250000"].tolist() == [0.0, 512**2 - 250_000, 1024**2 - 250_000]
    assert terms["weights beyond 1000000"].tolist() == [0.0, 0.0, 1024**2 - 1_000_000]
    assert "weights beyond 2000000" not in terms  # larger than the dense network


def test_roles() -> None:
    assert {op.name: role(op) for op in OPS} == {
        "stem": "stem",
        "a.expand": "pointwise",
        "a.depthwise": "depthwise",
        "a.project": "pointwise",
        "b.expand": "pointwise",
        "b.depthwise": "depthwise",
        "b.project": "pointwise",
        "b.add_0": "join",
        "head": "pointwise",
        "classifier": "linear",
    }
    assert role(OpTemplate("relu", "activation", ChannelCount(8), ChannelCount(8))) == "none"


def test_restrict_fixes_what_the_space_lacks() -> None:
    space = SearchSpace((ChannelGroup("head", 256),), ((128, 256),))
    fixed = restrict(OPS, space, staircase_space().dense())
    expand = next(op for op in fixed if op.name == "a.expand")
    assert expand.in_channels == ChannelCount(32)
    assert expand.out_channels == ChannelCount(96)
    assert next(op for op in fixed if op.name == "head").out_channels == ChannelCount(0, (("head", 1),))
    assert role(next(op for op in fixed if op.name == "a.depthwise")) == "depthwise"


def test_errors_name_the_culprit() -> None:
    with pytest.raises(TableError, match=r"depends on the channel group 'stem'.*Did you mean 'stems'"):
        Work(OPS, SearchSpace((ChannelGroup("stems", 8),), ((8,),)), 16)
    with pytest.raises(UsageError, match="tile is at least 1"):
        Work(OPS, SPACE, 0)
    with pytest.raises(UsageError, match=r"shape \(2, 3\) do not fit a space of 5"):
        Work(OPS, SPACE, 16).layers(np.ones((2, 3)))
    with pytest.raises(TableError, match="no operator with work"):
        Work((), SPACE, 16)
