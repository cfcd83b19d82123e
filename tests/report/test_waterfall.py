"""Reasons are given where they hold and nowhere else: hand-made layers with known causes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from random import Random

import pytest
from made_run import DENSE, KEPT, TILE, layer_times, ops

from hwprune.core.measurement import LayerTime
from hwprune.core.ops import OpKey
from hwprune.report.causes import padding_text
from hwprune.report.run_data import LayerProfile, NamedOp
from hwprune.report.waterfall import LayerRow, Waterfall, module_path, waterfall
from hwprune.report.waterfall_text import lost_sentence, waterfall_text

FLOOR = LayerTime("Reshape", "Reshape", 0.001)


def conv(into: int, out: int, *, size: int = 16, kernel: int = 3, groups: int = 1) -> OpKey:
    return OpKey("conv", into, out, (kernel, kernel), (1, 1), groups, (size, size), (size, size))


def layer(name: str, latency_ms: float, op: OpKey | None = None, *, kind: str = "Conv") -> LayerTime:
    if op is None:
        return LayerTime(name, kind, latency_ms)
    return LayerTime(name, kind, latency_ms, ((1, op.in_channels, *op.in_size),), ((1, op.out_channels, *op.out_size),))


def compare(
    dense: tuple[float, OpKey],
    pruned: tuple[float, OpKey],
    *,
    tile: int = 1,
    names: tuple[str, str] = ("block.conv/Conv", "block.conv/Conv"),
    shapes: bool = False,
    extra: tuple[LayerTime, ...] = (),
) -> Waterfall:
    sides = [
        (FLOOR, layer(name, latency, op if shapes else None))
        for name, (latency, op) in zip(names, (dense, pruned), strict=True)
    ]
    profile = LayerProfile(
        tile, sides[0], (*sides[1], *extra), (NamedOp("block.conv", dense[1]),), (NamedOp("block.conv", pruned[1]),)
    )
    return waterfall(profile)


def row(result: Waterfall, name: str = "block.conv") -> LayerRow:
    return next(item for item in result.rows if item.name == name)


def causes(item: LayerRow) -> dict[str, float]:
    return {cause.name: cause.cost_ms for cause in item.causes}


def test_time_that_follows_the_macs_has_no_cause() -> None:
    found = row(compare((1.0, conv(64, 64)), (0.5, conv(64, 32))))
    assert found.promised_ms == pytest.approx(0.5)
    assert found.causes == ()
    assert found.why == ""
    assert not found.in_vain


def test_padding_by_the_tile() -> None:
    found = row(compare((1.0, conv(64, 64)), (0.5005, conv(64, 25)), tile=32))
    assert found.why == "25 -> padded to 32"
    assert causes(found)["padding"] == pytest.approx(0.999 * (32 - 25) / 64, rel=1e-6)
    assert set(causes(found)) <= {"padding", "overhead"}


def test_padding_by_the_runtimes_own_shapes() -> None:
    """The runtime says 48 channels in and out where the model has 40: what it says goes before the tile."""
    dense, pruned = conv(64, 64), conv(40, 40)
    profile = LayerProfile(
        8,
        (FLOOR, layer("c/Conv", 1.0, dense)),
        (FLOOR, layer("c/Conv", 0.5625, conv(48, 48))),
        (NamedOp("c", dense),),
        (NamedOp("c", pruned),),
    )
    found = row(waterfall(profile), "c")
    assert found.why == "40 -> padded to 48, 40 -> padded to 48 (input)"
    assert causes(found)["padding"] == pytest.approx(0.999 * (48 * 48 - 40 * 40) / 64**2, rel=1e-6)


def test_no_padding_where_the_runtime_computes_the_channels_as_they_are() -> None:
    names = ("block.conv/Conv_nchwc", "block.conv/Conv_nchwc")
    found = row(compare((1.0, conv(64, 64)), (0.9, conv(64, 25)), tile=32, names=names, shapes=True))
    assert "padding" not in causes(found)
    assert found.why == "not explained by padding, layout, memory or overhead"


def test_shapes_of_the_model_do_not_deny_padding() -> None:
    """A runtime that reports logical shapes computes 25 channels as 32 all the same."""
    found = row(compare((1.0, conv(64, 64)), (0.5005, conv(64, 25)), tile=32, shapes=True))
    assert found.why == "25 -> padded to 32"


def test_a_shortest_node_with_work_to_do_is_no_fixed_cost() -> None:
    """Two layers of milliseconds each: the loss of one that is padded is padding, whatever the shortest takes."""
    ops = {"a": (conv(64, 64), conv(64, 25)), "b": (conv(64, 48), conv(25, 48))}
    times = {"a": (8.0, 4.0), "b": (6.0, 3.0)}
    sides = [tuple(layer(f"{name}/Conv", times[name][side]) for name in ops) for side in (0, 1)]
    named = [tuple(NamedOp(name, ops[name][side]) for name in ops) for side in (0, 1)]
    result = waterfall(LayerProfile(32, *sides, *named))
    assert set(result.lost_by_cause()) == {"padding"}
    assert result.lost_by_cause()["padding"] == pytest.approx(7 / 64 * 8 + 7 / 64 * 6, rel=1e-6)


def test_leaving_the_blocked_layout() -> None:
    names = ("block.conv/Conv+Relu_nchwc", "block.conv/Conv")
    dense, pruned = conv(144, 144, groups=144), conv(90, 90, groups=90)
    found = row(compare((0.026, dense), (0.29, pruned), tile=16, names=names, shapes=True))
    assert found.why == "left the blocked layout: 90 channels at a tile of 16"
    assert found.in_vain


def test_bound_by_activations() -> None:
    """A 1x1 convolution of few channels on a large map: halving one side halves the MACs, not the bytes."""
    wide, narrow = conv(8, 8, size=128, kernel=1), conv(4, 8, size=128, kernel=1)
    busy = conv(256, 256)
    profile = LayerProfile(
        1,
        (FLOOR, layer("thin/Conv", 0.1), layer("busy/Conv", 1.0)),
        (FLOOR, layer("thin/Conv", 0.0752), layer("busy/Conv", 1.0)),
        (NamedOp("thin", wide), NamedOp("busy", busy)),
        (NamedOp("thin", narrow), NamedOp("busy", busy)),
    )
    found = row(waterfall(profile), "thin")
    assert found.why == "bound by memory (activations)"
    assert causes(found)["memory"] == pytest.approx(0.25 * 0.099, rel=0.03)


def test_bound_by_weights() -> None:
    """A layer on one pixel reads each weight once; its biases aside it follows the weights, so inputs decide."""
    before, after = conv(2048, 4, size=1, kernel=1), conv(2048, 2, size=1, kernel=1)
    busy = conv(256, 256)
    profile = LayerProfile(
        1,
        (FLOOR, layer("head/Conv", 0.1), layer("busy/Conv", 0.2)),
        (FLOOR, layer("head/Conv", 0.0605), layer("busy/Conv", 0.2)),
        (NamedOp("head", before), NamedOp("busy", busy)),
        (NamedOp("head", after), NamedOp("busy", busy)),
    )
    found = row(waterfall(profile), "head")
    assert found.why == "bound by memory (weights)"


def test_the_fixed_cost_of_a_node() -> None:
    found = row(compare((0.0015, conv(64, 64)), (0.001125, conv(64, 16))))
    assert found.why == "fixed cost of a node (1.0 us) does not shrink"
    assert causes(found)["overhead"] == pytest.approx(0.00075)


def test_what_nothing_explains_is_said_to_be_unexplained() -> None:
    found = row(compare((1.0, conv(64, 64)), (1.4, conv(64, 32))))
    assert max(causes(found), key=causes(found).__getitem__) == "other"
    assert found.in_vain
    assert found.change_ms == pytest.approx(0.4)


def test_fusion_lost_and_inserted_conversions_stand_on_one_side() -> None:
    extra = (layer("block.relu/Relu", 0.02, kind="Relu"), layer("ReorderOutput_token_7", 0.01, kind="ReorderOutput"))
    result = compare((1.0, conv(64, 64)), (0.5, conv(64, 32)), extra=extra)
    assert row(result, "block.relu").why == "fusion lost: runs on its own in the pruned network"
    assert row(result, "ReorderOutput").why == "layout conversion inserted by the runtime"
    assert row(result, "ReorderOutput").dense_ms is None
    assert result.lost_by_cause()["added nodes"] == pytest.approx(0.03)


def test_a_node_that_only_the_dense_network_has() -> None:
    profile = LayerProfile(1, (FLOOR, layer("gone/Add", 0.1, kind="Add")), (FLOOR,), (), ())
    found = row(waterfall(profile), "gone")
    assert found.pruned_ms is None
    assert found.why == "only in the dense network: fused or gone"


def test_time_of_nodes_that_belong_to_no_module() -> None:
    result = compare((1.0, conv(64, 64)), (0.5, conv(64, 32)))
    assert result.unattributed_ms == pytest.approx(FLOOR.latency_ms)
    assert not row(result, "Reshape").in_model
    assert row(result).in_model


def test_unpruned_layers_are_called_so() -> None:
    found = row(compare((1.0, conv(64, 64)), (1.2, conv(64, 64))))
    assert found.why == "not pruned"
    assert found.lost_ms == 0


def test_nodes_of_one_module_are_summed() -> None:
    profile = LayerProfile(
        1,
        (layer("m/Conv", 0.3), layer("m/Conv_1", 0.2)),
        (layer("m/Conv", 0.1), layer("m/Conv_1", 0.1)),
        (NamedOp("m", conv(8, 8)),),
        (NamedOp("m", conv(8, 4)),),
    )
    found = row(waterfall(profile), "m")
    assert (found.dense_ms, found.pruned_ms) == (pytest.approx(0.5), pytest.approx(0.2))


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ("layer1.0.conv1/Conv+Relu_nchwc", "layer1.0.conv1"),
        ("fc/Gemm", "fc"),
        ("ReorderOutput_token_12", "ReorderOutput"),
        ("GlobalAveragePool_nchwc", "GlobalAveragePool"),
        ("Mul_18", "Mul"),
        ("Reshape", "Reshape"),
    ],
)
def test_module_path(node: str, path: str) -> None:
    assert module_path(node) == path


def test_padding_text_of_a_depthwise_layer_names_its_channels_once() -> None:
    op = conv(90, 90, groups=90)
    assert padding_text(op, replace(op, out_channels=96)) == "90 -> padded to 96"


def noisy_run(seed: int) -> Waterfall:
    """The made-up network at drawn widths, each layer up to twice as slow or a third faster than its formula."""
    rng = Random(seed)
    kept = {name: rng.randint(4, units) for name, units in DENSE.items()}
    noisy = tuple(replace(item, latency_ms=item.latency_ms * rng.uniform(0.7, 2)) for item in layer_times(kept, seed))
    result = waterfall(LayerProfile(TILE, layer_times(DENSE, 1), noisy, ops(DENSE), ops(kept)))
    assert result.dense_sum_ms == pytest.approx(math.fsum(item.latency_ms for item in layer_times(DENSE, 1)))
    assert result.pruned_sum_ms == pytest.approx(math.fsum(item.latency_ms for item in noisy))
    return result


@pytest.mark.parametrize("seed", range(20))
def test_causes_add_up_to_what_is_lost(seed: int) -> None:
    result = noisy_run(seed)
    for item in result.rows:
        if item.causes:
            lost = (item.pruned_ms or 0) - (item.promised_ms or 0)
            assert item.lost_ms == pytest.approx(lost, rel=0.05)
            assert all(cause.cost_ms > 0 for cause in item.causes)


@pytest.mark.parametrize("seed", range(20))
def test_from_the_promise_to_the_pruned_sum_nothing_is_left_out(seed: int) -> None:
    result = noisy_run(seed)
    between = sum(result.lost_by_cause().values()) + sum(result.further().values())
    assert result.promised_sum_ms + between == pytest.approx(result.pruned_sum_ms)
    by_hand = math.fsum(
        (item.pruned_ms or 0) - (item.promised_ms or 0)
        for item in result.rows
        if item.promised_ms is not None and not item.causes
    )
    assert sum(result.further().values()) == pytest.approx(by_hand, abs=0.01 * result.dense_sum_ms)


def test_what_differs_without_a_cause_is_told_apart() -> None:
    """One layer is faster than promised, one was not pruned and is slower, one is a little above its promise."""
    dense, half = conv(64, 64), conv(64, 32)
    names = ("fast", "same", "near")
    profile = LayerProfile(
        1,
        (FLOOR, *(layer(f"{name}/Conv", 1.0, dense) for name in names)),
        (FLOOR, layer("fast/Conv", 0.4, half), layer("same/Conv", 1.2, dense), layer("near/Conv", 0.53, half)),
        tuple(NamedOp(name, dense) for name in names),
        (NamedOp("fast", half), NamedOp("same", dense), NamedOp("near", half)),
    )
    result = waterfall(profile)
    assert result.further() == pytest.approx({"faster": -0.1, "not pruned": 0.2, "unresolved": 0.03})
    text = waterfall_text(result)
    assert "further   -0.100 ms in layers faster than their MACs promise\n" in text
    assert "unresolved: differences below 5 % of a layer, net" in text
    assert re.search(r"^fast .* faster than promised$", text, re.MULTILINE)


def test_added_nodes_are_lost_and_not_promised() -> None:
    extra = (layer("block.relu/Relu", 0.02, kind="Relu"),)
    plain, added = (compare((1.0, conv(64, 64)), (0.5, conv(64, 32)), extra=more) for more in ((), extra))
    assert added.promised_sum_ms == pytest.approx(plain.promised_sum_ms)
    assert added.lost_by_cause() == {"added nodes": pytest.approx(0.02)}
    assert added.to_json()["further_ms"] == pytest.approx({"faster": 0, "not pruned": 0, "unresolved": 0}, abs=1e-12)


def test_layers_of_a_removed_branch_are_called_so() -> None:
    dense, none = conv(64, 64), conv(64, 0)
    profile = LayerProfile(
        1,
        (FLOOR, layer("block.conv/Conv", 0.4), layer("block/Add", 0.1, kind="Add"), layer("other/Add", 0.1)),
        (FLOOR,),
        (NamedOp("block.conv", dense),),
        (NamedOp("block.conv", none),),
    )
    result = waterfall(profile)
    assert [row(result, name).why for name in ("block.conv", "block")] == ["branch removed"] * 2
    assert row(result, "block.conv").dense_channels == (64, 64)
    assert row(result, "other").why == "only in the dense network: fused or gone"


def test_a_layer_that_hardly_counts_is_not_listed_as_pruned_in_vain() -> None:
    """Its time did not shrink, which costs the network a ten-thousandth: not a thing to redden a report for."""
    big, little = conv(64, 64), conv(8, 8)
    profile = LayerProfile(
        1,
        (FLOOR, layer("big/Conv", 10.0), layer("little/Conv", 0.002)),
        (FLOOR, layer("big/Conv", 10.0), layer("little/Conv", 0.002)),
        (NamedOp("big", big), NamedOp("little", little)),
        (NamedOp("big", big), NamedOp("little", replace(little, out_channels=4))),
    )
    result = waterfall(profile)
    assert row(result, "little").in_vain
    assert row(result, "little").lost_ms == pytest.approx(0.001)
    assert result.in_vain == ()
    assert "lost channels and less than" not in waterfall_text(result)
    assert compare((1.0, conv(64, 64)), (1.4, conv(64, 32))).in_vain


def made() -> Waterfall:
    profile = LayerProfile(TILE, layer_times(DENSE, 1), layer_times(KEPT, 2), ops(DENSE), ops(KEPT))
    return waterfall(profile, dense_ms=3.04, pruned_ms=1.84, simulated=True)


def test_the_made_up_run_blames_the_width_off_the_tile() -> None:
    result = made()
    assert row(result, "layer1.1.conv1").why == "25 -> padded to 32"
    assert row(result, "layer1.1.conv2").why == "25 -> padded to 32 (input)"
    assert next(iter(result.lost_by_cause())) == "padding"
    assert [item.name for item in result.rows][:3] == ["stem", "layer1.0.conv1", "layer1.0.conv2"]


def test_json_has_units_and_reasons() -> None:
    document = made().to_json()
    assert document["dense_ms"] == 3.04
    assert document["rows"][3]["why"] == "25 -> padded to 32"
    assert document["rows"][3]["change_ms"] < 0


def test_text_lists_sums_and_layers() -> None:
    lines = waterfall_text(made(), limit=4).splitlines()
    assert lines[0].startswith("SIMULATED")
    assert lines[1] == "dense     3.04 ms measured, layers add up to 3.13 ms"
    assert any(line.startswith("(14 shorter ones)") for line in lines)
    assert any(line.startswith("sum ") and "-40 %" in line for line in lines)
    assert lines[-1].endswith("the measured whole decides.")


def test_the_promise_is_one_of_the_layers_sum_not_of_the_measured_whole() -> None:
    """Measured 3.00 -> 1.70 ms: a promise of 1.80 ms would look beaten, though the layers lost 0.09 ms."""
    result = replace(made(), dense_ms=3.00, pruned_ms=1.70)
    lines = waterfall_text(result).splitlines()
    assert "pruned    1.70 ms measured, layers add up to 1.89 ms" in lines
    assert "promise   layers would add up to 1.80 ms if their times followed the MACs" in lines
    assert "Layer times, and so promise and losses, come from a profiled session" in lines[-2]


def test_text_fits_a_wide_terminal_and_says_every_reason_whole() -> None:
    text = waterfall_text(made())
    assert max(map(len, text.splitlines())) <= 120
    said = re.findall(r"^layer3\.0\.shortcut .*  (fixed .*)\n {80,}(\S.*)$", text, re.MULTILINE)
    assert [" ".join(parts) for parts in said] == ["fixed cost of a node (4.1 us) does not shrink"]


def test_text_of_layers_in_vain() -> None:
    text = waterfall_text(compare((1.0, conv(64, 64)), (1.4, conv(64, 32))))
    assert "1 layer lost channels and less than 5 % of the time:\n  block.conv  not explained" in text


def test_lost_sentence() -> None:
    assert lost_sentence(made()).startswith("0.0681 ms padding, ")


def test_nothing_lost_says_nothing() -> None:
    assert "lost      nothing" in waterfall_text(compare((1.0, conv(64, 64)), (0.5, conv(64, 32))))
