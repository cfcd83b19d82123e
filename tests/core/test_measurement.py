"""Measurements from made-up rounds: derived figures, warnings, JSON, error messages."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hwprune.core.errors import UsageError
from hwprune.core.measurement import WARNINGS, Fingerprint, LayerTime, Measurement, Protocol, Round, Target, explain
from tests.helpers.made_rounds import FINGERPRINT, make, make_round


class TestRound:
    def test_quiet_laps_are_divided_by_the_reference_around_them(self) -> None:
        done = Round(0, (2.0, 4.0, 6.0, 8.0), (1.0, 2.0), (1.0, 2.0), 2, 1.0, 1.06)
        assert done.quiet_laps == 2
        assert done.ratios == (2.0, 4.0)

    def test_without_quiet_laps_the_least_disturbed_quarter_stays_as_it_is(self) -> None:
        done = Round(0, (2.2, 3.3, 4.4, 5.5), (1.2, 1.1, 1.3, 1.4), (1.3, 1.1, 1.3, 1.4), 1, 1.0, 1.06)
        assert done.quiet_laps == 0
        assert done.ratios == (3.3,)


class TestMeasurement:
    def test_latency_is_the_mean_of_the_round_medians(self) -> None:
        measured = make([2.0, 2.2, 2.4])
        assert measured.latency_ms == pytest.approx(1.1)
        assert measured.round_medians_ms == pytest.approx((1.0, 1.1, 1.2))
        half = 4.302652729696 * 0.1 / 3**0.5
        assert measured.ci_ms == pytest.approx((1.1 - half, 1.1 + half))
        assert (measured.lap_count, measured.round_count) == (90, 3)
        assert measured.wall_ms == 2.0

    def test_p99_needs_473_laps(self) -> None:
        assert make([2.0] * 15, laps=31, noise=0.01).p99_ms is None
        assert make([2.0] * 16, laps=30, noise=0.01).p99_ms == pytest.approx(1.0232, abs=0.005)
        assert make([2.0] * 5, noise=0.01).p90_ms == pytest.approx(1.0128, abs=0.003)

    def test_void_rounds_are_kept_and_do_not_count(self) -> None:
        good = make([2.0, 2.0, 2.0])
        bad = make_round(3, [9.0] * 30, void="disturbed")
        measured = replace(good, rounds=(*good.rounds, bad))
        assert measured.latency_ms == pytest.approx(1.0)
        assert measured.void_rounds == {"disturbed": 1}
        assert measured.round_count == 3
        assert measured.converged

    def test_all_void_still_gives_a_number_with_a_warning(self) -> None:
        rounds = tuple(make_round(index, [2.0] * 9, void="disturbed") for index in range(3))
        measured = Measurement("net", rounds, 0.5, Protocol(), FINGERPRINT)
        assert measured.latency_ms == pytest.approx(1.0)
        assert not measured.converged
        assert "all_rounds_void" in measured.warnings

    def test_rounds_in_which_the_device_was_throttled_never_count(self) -> None:
        throttled = make_round(0, [9.0] * 9, void="over-current oc3 changed")
        late = make_round(1, [2.0] * 9, void="disturbed")
        measured = Measurement("net", (throttled, late), 0.5, Protocol(), FINGERPRINT)
        assert measured.valid_rounds == (late,)
        assert measured.latency_ms == pytest.approx(1.0)

    def test_where_most_rounds_are_void_those_with_quiet_laps_count_and_the_others_do_not(self) -> None:
        quiet_at_times = Round(1, (2.0, 9.0), (1.0, 1.4), (1.0, 1.4), 1, 1.0, 1.06, "disturbed", 2.0)
        loud = [make_round(index, [9.0] * 3, reference=1.4, void="disturbed") for index in (2, 3)]
        drifting = make_round(4, [5.0] * 3, void="trend")
        measured = Measurement("net", (quiet_at_times, *loud, drifting), 0.5, Protocol(), FINGERPRINT)
        assert measured.valid_rounds == measured.rounds, "a single round does not bear it"
        with_a_good_one = replace(measured, rounds=(make_round(0, [2.2] * 3), *measured.rounds))
        assert [item.index for item in with_a_good_one.valid_rounds] == [0, 1]
        assert with_a_good_one.latency_ms == pytest.approx(1.05)

    def test_p90_by_hand(self) -> None:
        """Rounds of one median and three tails: the interval is t over the rounds' own p90, as the median's is."""
        laps = [[2.0] * 9 + [tail] * 2 for tail in (2.2, 2.4, 2.6)]  # of 11 laps the tenth is the p90
        rounds = tuple(make_round(index, times) for index, times in enumerate(laps))
        measured = Measurement("net", rounds, 0.5, Protocol(), FINGERPRINT)
        half = 4.302652729696 * 0.1 / 3**0.5  # the tails are 1.1, 1.2 and 1.3 ms
        value = 1.1 + 0.8 * 0.1  # of all 33 laps, by interpolation between the 29th and the 30th
        assert measured.statistic("p90") == pytest.approx((value, value - half, value + half))
        assert measured.ci_ms == pytest.approx((1.0, 1.0))

    def test_p90_of_a_single_round_by_hand(self) -> None:
        """The standard error of a normal sample's p90 is 1.71 times that of its mean: sqrt(0.9 * 0.1) / 0.1755."""
        measured = Measurement("net", (make_round(0, [2.0] * 9 + [2.4] * 2),), 0.5, Protocol(), FINGERPRINT)
        deviation = ((9 * (0.4 / 11) ** 2 + 2 * (1.8 / 11) ** 2) / 10) ** 0.5  # from the mean, 11.4 / 11 ms
        half = 2.228138851965 * 1.71 * deviation / 11**0.5
        assert measured.statistic("p90") == pytest.approx((1.2, 1.2 - half, 1.2 + half))

    def test_statistics_by_name(self) -> None:
        measured = make([2.0, 2.1, 2.2], noise=0.01)
        assert measured.statistic("median") == (measured.latency_ms, *measured.ci_ms)
        value, low, high = measured.statistic("p90")
        assert low < value < high
        assert value == measured.p90_ms
        with pytest.raises(UsageError, match="unknown statistic 'p95'") as caught:
            measured.statistic("p95")
        assert caught.value.hint == "known: median, p90"

    def test_one_round_has_an_interval_and_says_so(self) -> None:
        measured = make([2.0], laps=8, noise=0.01)
        assert measured.ci_ms[0] < measured.latency_ms < measured.ci_ms[1]
        assert measured.warnings == ("single_round",)
        assert measured.statistic("p90")[2] >= measured.p90_ms

    def test_bimodal(self) -> None:
        measured = make([2.0, 2.01, 2.2, 2.0, 2.21, 2.2])
        assert measured.bimodal
        assert "bimodal" in measured.warnings
        assert not make([2.0, 2.01, 2.02, 2.0]).bimodal

    def test_warnings_are_a_closed_set_with_advice(self) -> None:
        measured = make([2.0, 3.0, 2.0, 3.0, 2.5])
        assert set(measured.warnings) <= set(WARNINGS)
        assert "wide_interval" in measured.warnings
        assert all(sentence and advice for sentence, advice in WARNINGS.values())

    def test_an_engines_notes_and_facts_stand_with_the_warnings_and_survive_json(self) -> None:
        noted = replace(make([2.0, 2.01, 2.02]), notes=("mixed_precision: conv1",), facts=(("kernels", "4"),))
        assert noted.warnings[-1] == "mixed_precision: conv1"
        assert explain(noted.warnings[-1]).startswith("TensorRT kept layers in fp32 (conv1); ")
        assert explain("bimodal") == "; ".join(WARNINGS["bimodal"])
        document = noted.to_json()
        assert Measurement.from_json(document) == noted
        older = {key: value for key, value in document.items() if key not in ("notes", "facts")}
        assert Measurement.from_json(older).notes == ()

    def test_outliers_are_counted_not_dropped(self) -> None:
        good = make([2.0] * 3, laps=9, noise=0.001)
        spoilt = replace(good, rounds=(*good.rounds, make_round(3, [2.0, 2.001, 1.999, 9.0, 9.0, 9.0])))
        assert spoilt.outlier_laps == 3
        assert spoilt.lap_count == 33
        assert "outliers" in spoilt.warnings

    def test_an_unsteady_clock_is_reported(self) -> None:
        slow = make_round(1, [2.4] * 9, reference=1.2)
        measured = Measurement("net", (make_round(0, [2.0] * 9), slow), 0.5, Protocol(), FINGERPRINT)
        assert "unsteady_clock" in measured.warnings

    def test_needs_rounds(self) -> None:
        with pytest.raises(UsageError, match="'net' has no rounds"):
            Measurement("net", (), 0.5, Protocol(), FINGERPRINT)

    def test_survives_json(self) -> None:
        measured = make([2.0, 2.1, 2.2], noise=0.01)
        again = Measurement.from_json(json.loads(json.dumps(measured.to_json(), allow_nan=False)))
        assert again == measured
        assert again.latency_ms == measured.latency_ms


class TestFingerprintAndTarget:
    def test_differences_are_sentences(self) -> None:
        other = replace(FINGERPRINT, runtime_version="1.30.0", flags=(("spinning", "on"), ("tf32", "off")))
        assert FINGERPRINT.differences(other) == (
            "runtime_version: 1.31.1 != 1.30.0",
            "flag spinning: off != on",
            "flag tf32: absent != off",
        )
        assert FINGERPRINT.differences(FINGERPRINT) == ()
        assert other.digest() != FINGERPRINT.digest()

    def test_survives_json(self) -> None:
        again = Fingerprint.from_json(json.loads(json.dumps(FINGERPRINT.to_json())))
        assert again == FINGERPRINT
        assert again.digest() == FINGERPRINT.digest()
        assert again.target() == Target()

    def test_labels(self) -> None:
        assert Target().label() == "cpu onnxruntime fp32 b1 t1"
        assert Target("simulated", "simulated").label().startswith("SIMULATED ")

    def test_refuses_what_no_target_has(self) -> None:
        with pytest.raises(UsageError, match="unknown precision 'fp31'"):
            Target(precision="fp31")
        with pytest.raises(UsageError, match="threads must be a whole number of 1 or more, not 0"):
            Target(threads=0)
        with pytest.raises(UsageError, match="batch must be"):
            Target(batch=True)


class TestProtocol:
    def test_named_protocols_survive_json(self) -> None:
        named = (Protocol.sample, Protocol.quick, Protocol.default, Protocol.verdict, Protocol.publish)
        for protocol in (plan() for plan in named):
            assert Protocol.from_json(json.loads(json.dumps(protocol.to_json()))) == protocol

    def test_refuses_nonsense(self) -> None:
        with pytest.raises(UsageError, match="rounds_min=6 and rounds_max=5"):
            Protocol(rounds_min=6, rounds_max=5)
        with pytest.raises(UsageError, match="laps=2 is too few"):
            Protocol(laps=2)
        with pytest.raises(UsageError, match="interval_target=0"):
            Protocol(interval_target=0.0)


def test_layer_time_survives_json() -> None:
    layer = LayerTime("conv1", "Conv", 0.02, ((1, 3, 8, 8), (16, 3, 3, 3)), ((1, 16, 8, 8),), "fused Relu")
    assert LayerTime.from_json(json.loads(json.dumps(layer.to_json()))) == layer
