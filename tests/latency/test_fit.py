"""Fitting a table: the split, the comparison, the choice, and LPNet's own promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwprune.core.errors import TableError, UsageError
from hwprune.latency.fit import compare, fit, split
from hwprune.latency.models._base import from_json, load_model, make_model
from hwprune.latency.models.lpnet import LPNet
from hwprune.latency.plan import PROFILED
from hwprune.latency.profile import profile
from hwprune.latency.scores import one_group_pairs
from hwprune.latency.table import LatencyTable
from hwprune.testing.staircase import (
    StaircaseBoard,
    StaircaseGraph,
    StaircaseTemplate,
    staircase_samples,
    staircase_space,
)

SPACE = staircase_space()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> LatencyTable:
    root, board = tmp_path_factory.mktemp("tables"), StaircaseBoard(noise=0.02)
    empty = LatencyTable.obtain(root, model_name="net", graph=StaircaseGraph(), space=SPACE, board=board, tile=16)
    return profile(StaircaseTemplate(), StaircaseGraph(), SPACE, board, table=empty, samples=100)


def test_the_report_compares_all_kinds(table: LatencyTable) -> None:
    report = fit(table, kinds=("lpnet", "linear", "table_sum", "macs"))
    scores = {item.kind: item.scores for item in report.comparison}
    assert set(scores) == {"lpnet", "linear", "table_sum", "macs"}
    assert report.chosen == "lpnet"
    assert report.model.kind == "lpnet"
    assert report.scores.mape < 0.02
    assert report.scores.within_10 == 1.0
    assert scores["macs"] is not None
    assert scores["macs"].mape > 2 * report.scores.mape
    assert report.train_count + report.held_out_count == 100
    assert report.label_noise is not None
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["chosen"] == "lpnet"


def test_sweeps_stay_whole_and_the_ends_are_trained_on(table: LatencyTable) -> None:
    train, test = split(table, table.samples().merged(), 0.3, seed=5)
    sweeps = {row.widths for row in table.rows if row.kind == "sweep"}
    values = np.concatenate([train.values, test.values])
    for a, b in one_group_pairs(values):
        if tuple(values[a]) in sweeps and tuple(values[b]) in sweeps:
            assert (a < len(train)) == (b < len(train))
    trained = {tuple(row) for row in train.values.tolist()}
    assert {SPACE.dense().values_tuple(), SPACE.smallest().values_tuple()} <= trained
    assert 20 <= len(test) <= 30


def test_a_kind_that_cannot_be_fitted_is_listed_with_the_reason() -> None:
    samples = replace(staircase_samples(30), layers=())
    comparison, errors = compare(samples, staircase_samples(10, seed=1), kinds=("table_sum", "macs"))
    assert comparison[0].scores is None
    assert "a table sum needs layer times of 2 networks or more" in comparison[0].reason
    assert set(errors) == {"macs"}
    with pytest.raises(TableError, match="no latency model could be fitted"):
        compare(samples, samples, kinds=("table_sum",))


def test_another_kind_is_chosen_only_when_clearly_better(table: LatencyTable) -> None:
    assert fit(table, kinds=("macs", "linear")).chosen == "linear"
    assert fit(table, kinds=("lpnet", "linear")).chosen == "lpnet"


def test_wrong_calls_are_refused(table: LatencyTable) -> None:
    with pytest.raises(UsageError, match="holdout must lie between 0 and 1, not"):
        fit(table, holdout=1.5)
    with pytest.raises(UsageError, match=r"unknown model 'lpnett'\. Did you mean 'lpnet'"):
        fit(table, kinds=("lpnett",))
    with pytest.raises(UsageError, match="no kind of latency model"):
        fit(table, kinds=())
    with pytest.raises(UsageError, match="'lpnet' has no option 'depth'"):
        make_model("lpnet", depth=3)
    with pytest.raises(UsageError, match="LPNet has no features 'ops'"):
        make_model("lpnet", features="ops")


def test_a_table_too_small_says_so(tmp_path: Path) -> None:
    board = StaircaseBoard()
    empty = LatencyTable.obtain(tmp_path, model_name="net", graph=StaircaseGraph(), space=SPACE, board=board, tile=16)
    small = profile(StaircaseTemplate(), StaircaseGraph(), SPACE, board, table=empty, samples=11)
    with pytest.raises(TableError, match="11 measured networks are too few"):
        fit(small, kinds=("macs",))


def test_the_error_bar_is_calibrated() -> None:
    model = make_model("lpnet").fit(staircase_samples(100, noise=0.03))
    held_out = staircase_samples(300, seed=9, noise=0.03)
    inside = np.abs(model.predict_batch(held_out.values) - held_out.latency_ms) <= model.error_batch(held_out.values)
    assert abs(np.mean(inside) - 0.68) < 0.08


def _bent(count: int, seed: int) -> tuple[LPNet, float, float]:
    """LPNet on a device that its backbone cannot express, with held-out MAPE of the whole and of the backbone."""

    def bend(values: np.ndarray) -> np.ndarray:
        ratios = values / np.array(SPACE.dense().values_tuple())
        return np.asarray(1 + 0.25 * np.sin(3 * ratios[:, 1]) * ratios[:, 3])

    samples, held_out = staircase_samples(count, seed=seed), staircase_samples(200, seed=seed + 50, noise=0.0)
    bent = replace(samples, latency_ms=samples.latency_ms * bend(samples.values))
    truth = held_out.latency_ms * bend(held_out.values)
    model = LPNet()
    model.fit(bent)
    whole = float(np.mean(np.abs(model.predict_batch(held_out.values) / truth - 1)))
    model._share, kept = 0.0, model._share
    backbone = float(np.mean(np.abs(model.predict_batch(held_out.values) / truth - 1)))
    model._share = kept
    return model, whole, backbone


def test_the_correction_learns_what_the_backbone_cannot() -> None:
    model, whole, backbone = _bent(150, 0)
    assert model._share > 0
    assert whole < 0.7 * backbone


@pytest.mark.parametrize("seed", range(4))
def test_lpnet_is_not_worse_than_its_backbone(seed: int) -> None:
    _, whole, backbone = _bent(20, seed)
    assert whole < 1.05 * backbone


def test_lpnet_switches_its_correction_off_where_there_is_nothing_to_correct() -> None:
    model = LPNet()
    model.fit(staircase_samples(40, noise=0.05))
    assert model._share == 0.0


def test_a_few_labels_that_are_far_off_do_not_matter() -> None:
    samples, held_out = staircase_samples(80), staircase_samples(100, seed=3, noise=0.0)
    spoilt = samples.latency_ms.copy()
    spoilt[::9] *= 1.6
    for kind in ("lpnet", "linear"):
        model = make_model(kind).fit(replace(samples, latency_ms=spoilt))
        assert np.mean(np.abs(model.predict_batch(held_out.values) / held_out.latency_ms - 1)) < 0.02


def test_backbone_coefficients_are_not_negative() -> None:
    model = LPNet()
    model.fit(staircase_samples(30, noise=0.05))
    assert bool(np.all(model._coefficients >= 0))


def test_nothing_in_a_fitted_model_is_trainable(tmp_path: Path) -> None:
    import torch

    model = make_model("lpnet").fit(staircase_samples(30))
    model.save(tmp_path / "lpnet.json")
    again = load_model(tmp_path / "lpnet.json")
    assert not any(isinstance(value, torch.Tensor) for value in vars(again).values())
    assert again.predict(SPACE.dense()) == model.predict(SPACE.dense())


def test_a_broken_model_file_says_so() -> None:
    document = make_model("macs").fit(staircase_samples(30)).to_json()
    with pytest.raises(TableError, match="is not a latency model of the form"):
        from_json({"schema": "hwprune.latency_table/1"})
    with pytest.raises(TableError, match="the latency model is corrupt: KeyError"):
        from_json({key: value for key, value in document.items() if key != "state"})
    with pytest.raises(UsageError, match="unknown model 'mac'"):
        from_json({**document, "kind": "mac"})


def test_what_other_searches_add_does_not_change_a_fit(tmp_path: Path) -> None:
    board = StaircaseBoard(noise=0.01)
    empty = LatencyTable.obtain(tmp_path, model_name="net", graph=StaircaseGraph(), space=SPACE, board=board, tile=16)
    table = profile(StaircaseTemplate(), StaircaseGraph(), SPACE, board, table=empty, samples=40)
    count = sum(row.kind in PROFILED for row in table.rows)
    before = fit(table, kinds=("lpnet",), rows=PROFILED, first=count)
    for number, row in enumerate(table.rows[:8]):
        other = replace(row, latency_ms=row.latency_ms * 1.2, kind="search", session=f"other-{number}")
        table.append(other, fingerprint=table.fingerprint)
    assert fit(table, kinds=("lpnet",), rows=PROFILED, first=count).to_json() == before.to_json()
    assert fit(table, kinds=("lpnet",)).label_noise != before.label_noise
