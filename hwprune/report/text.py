"""Plain text for the terminal: aligned tables and the summaries of the verbs. No colours, no wrapping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hwprune.core.comparison import Comparison
from hwprune.core.measurement import Fingerprint, Measurement, explain
from hwprune.core.units import format_count, format_duration, format_ms, percent
from hwprune.report.run_data import Result
from hwprune.report.score_text import change_text, is_share, score_text

BAR_WIDTH = 20
REMOVED = "branch removed"
APART = 0.03  # a ratio of latencies so far outside the interval of one that was timed is told, relative
MOST_WARNINGS = 8  # in a summary; the report has them all


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Columns two spaces apart, numbers to the right, the columns in `left` to the left."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """`name      text` lines; an empty name continues the line before, an empty text is left out."""
    return "\n".join(f"{name:<9} {text}" for name, text in pairs if text)


def interval(value_ms: float, ci_ms: tuple[float, float]) -> str:
    """`0.3052 ms [0.3031, 0.3073]`: as many decimals as the interval bears, at least three digits of the value."""
    low, high = ci_ms
    if not (math.isfinite(low) and math.isfinite(high)):
        return format_ms(value_ms)
    half = max((high - low) / 2, value_ms * 1e-4, 1e-9)
    decimals = min(max(2 - _exponent(value_ms), -_exponent(half), 0), 4)
    return f"{value_ms:.{decimals}f} ms [{low:.{decimals}f}, {high:.{decimals}f}]"


def speed_sentence(comparison: Comparison, baseline_ms: float | None = None, subject_ms: float | None = None) -> str:
    """`1.66 times faster than dense [1.64, 1.68]`, or that no difference was shown.

    Adds what the latencies, of another session, would make of it where that is another answer.
    """
    told = _told(comparison)
    if not baseline_ms or not subject_ms:
        return told
    by_ms = subject_ms / baseline_ms
    low, high = comparison.ci
    if low / (1 + APART) <= by_ms <= high * (1 + APART):
        return told
    return (
        f"{told}; by the milliseconds, which are of other moments, the ratio is {by_ms:.3f}, not {comparison.ratio:.3f}"
    )


def speed_of(result: Result) -> str:
    """How a run's pruned network compares with its dense one; empty without a comparison."""
    if result.comparison is None:
        return ""
    return speed_sentence(result.comparison, result.dense_ms, result.measured_ms)


def _told(comparison: Comparison) -> str:
    ratio, (low, high) = comparison.ratio, comparison.ci
    if comparison.verdict == "no difference shown":
        return f"no difference to {comparison.baseline} shown: ratio {ratio:.3f} [{low:.3f}, {high:.3f}]"
    if comparison.verdict == "faster":
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    decimals = 2 if ratio > 1.05 else 3
    factor, bounds = f"{ratio:.{decimals}f}", f"[{low:.{decimals}f}, {high:.{decimals}f}]"
    return f"{factor} times {comparison.verdict} than {comparison.baseline} {bounds}"


def device_sentence(fingerprint: Fingerprint) -> str:
    """`cpu: Xeon (6/143/8), onnxruntime 1.31.1 fp32, batch 1, 1 thread`."""
    threads = "1 thread" if fingerprint.threads == 1 else f"{fingerprint.threads} threads"
    text = (
        f"{fingerprint.device}: {fingerprint.cpu_model}, {fingerprint.runtime} {fingerprint.runtime_version} "
        f"{fingerprint.precision}, batch {fingerprint.batch}, {threads}"
    )
    return f"SIMULATED {text}" if fingerprint.runtime == "simulated" else text


def widths_table(dense: Mapping[str, int], kept: Mapping[str, int]) -> str:
    """A line a channel group: dense units, units kept, the keep ratio as a bar, empty where nothing is left."""
    rows = []
    for name, units in dense.items():
        width = kept.get(name, units)
        filled = max(1, round(BAR_WIDTH * width / units)) if width else 0
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        rows.append((name, str(units), str(width), percent(width / units, 0), bar if width else f"{bar}  {REMOVED}"))
    return table(("CHANNEL GROUP", "DENSE", "KEPT", "KEEP", ""), rows, left=(0, 4))


def search_text(result: Result) -> str:
    """The whole answer of `hwprune search`: dense, budget, feasibility, fit, pruned network, widths, verdict."""
    lines = (
        [("SIMULATED", "no hardware was timed; every latency below comes from a formula")] if result.simulated else []
    )
    lines += [
        ("device", _device(result)),
        ("model", " on ".join(filter(None, (result.model, result.data)))),
        ("dense", _network(result, "dense")),
        ("budget", f"{format_ms(result.budget_ms)} at the {result.statistic}, {_of_dense(result)} of dense"),
        ("", limits_sentence(result)),
        ("feasible", _feasible(result)),
        ("fit", fit_sentence(result)),
        ("search", _search_sentence(result)),
    ]
    if result.verdict != "infeasible":
        lines += [
            ("pruned", _network(result, "pruned")),
            ("", _predicted_sentence(result)),
            ("speed", speed_of(result)),
        ]
    body = [facts(lines), "", widths_table(result.dense_widths, result.widths), ""]
    closing = [
        ("verdict", verdict_sentence(result)),
        ("run", result.run_dir),
        ("took", _took(result)),
    ]
    return "\n".join([*body, facts(closing), *_warning_lines(result)])


def warnings_of(result: Result) -> tuple[str, ...]:
    """What the measurements and the run warn about, as sentences, each once; what bears on the numbers first."""
    return tuple(dict.fromkeys((*measured_warnings(result), *result.cautions)))


def measured_warnings(result: Result) -> list[str]:
    """`dense: more than 5 % of the laps are outliers ...; ...`: the warnings of the measurements, with advice."""
    return [f"{name}: {text}" for name, texts in result.measured_warnings.items() for text in texts]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name without the folders that all of them share."""
    parts = [name.split("/") for name in names]
    shared = 0
    while len(names) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return {name: "/".join(part[shared:]) if shared else name for name, part in zip(names, parts, strict=True)}


def verdict_sentence(result: Result) -> str:
    """`pass: 0.301 ms measured [0.299, 0.303] <= 0.307 ms, 98.0 % of the budget used`."""
    if result.measured_ms is None or result.measured_ci_ms is None:
        if result.exceeded:
            over = [f"at most {most:,} {words} asked" for words, (most, _) in result.exceeded.items()]
            has = [f"{has:,} {words}" for words, (_, has) in result.exceeded.items()]
            return f"infeasible: {' and '.join(over)}, the smallest allowed network has {' and '.join(has)}"
        smallest = format_ms(result.smallest_ms) if result.smallest_ms is not None else "unknown"
        return f"infeasible: {format_ms(result.budget_ms)} asked, smallest reachable {smallest} measured"
    measured = interval(result.measured_ms, result.measured_ci_ms)
    sign = "<=" if result.verdict == "pass" else ">"
    if result.verdict == "miss" and result.measured_ms <= result.budget_ms:
        sign = "(upper end of the interval) >"
    stamp = " (SIMULATED)" if result.simulated else ""
    used = percent(result.utilisation)
    return (
        f"{result.verdict}{stamp}: {measured} measured {sign} {format_ms(result.budget_ms)}, {used} of the budget used"
    )


def limits_sentence(result: Result) -> str:
    """`at most 2 M parameters, 97.3 % used`: the limits beside the latency; empty where there are none."""
    used = "" if result.exceeded or result.measured_ms is None else ", {share} used"
    return "; ".join(
        f"at most {format_count(most)} {words}{used.format(share=percent((has or 0) / most))}"
        for words, (most, has) in result.limits.items()
    )


def fit_sentence(result: Result) -> str:
    """How good the latency model is on networks that it was not fitted on."""
    scores = result.fit.get(result.latency_model)
    if not scores:
        return ""
    noise = scores.get("label_noise")
    beside = f", label noise {percent(noise)}" if noise is not None else ""
    return (
        f"{result.latency_model}: MAPE {percent(scores.get('mape'))}{beside}, "
        f"{percent(scores.get('within_10'), 0)} within 10 % on held-out networks"
    )


def bench_text(
    measurements: Mapping[str, Measurement], comparisons: Sequence[Comparison], limit_ms: float | None = None
) -> str:
    """Every subject's statistics, then the comparisons with their intervals, then the limit."""
    first = next(iter(measurements.values()))
    short = short_names(list(measurements))
    lines = [device_sentence(first.fingerprint), ""]
    rows = [_bench_row(short[name], measurement) for name, measurement in measurements.items()]
    lines.append(table(("SUBJECT", "LATENCY [95 %]", "P90", "P99", "MAD", "ROUNDS", "LAPS", "VOID"), rows))
    lines.append("")
    for item in comparisons:
        named = replace(item, baseline=short.get(item.baseline, item.baseline))
        both = measurements[item.baseline].latency_ms, measurements[item.subject].latency_ms
        lines.append(f"{short.get(item.subject, item.subject)}: {speed_sentence(named, *both)}")
    judged = list(measurements.items())[1:] or list(measurements.items())
    for name, timed in judged if limit_ms is not None else ():
        over = limit_ms is not None and timed.ci_ms[1] > limit_ms
        lines.append(f"{short[name]}: {'FAIL: not' if over else 'pass:'} under {format_ms(limit_ms or 0)}")
    for name, timed in measurements.items():
        lines += [f"warning: {short[name]}: {explain(warning)}" for warning in timed.warnings]
    lines += [
        f"note: {short[name]}: the latency is the device's; one request alone takes {format_ms(timed.wall_ms)}"
        for name, timed in measurements.items()
        if timed.clock == "device"
    ]
    if any(timed.p99_ms is None for timed in measurements.values()):
        lines.append("note: p99 takes 473 laps or more")
    return "\n".join(lines)


def scores_text(rows: Sequence[tuple[str, Mapping[str, float | None], str]], chosen: str) -> str:
    """The comparison of `hwprune fit`: one line a latency model, `(kind, scores, why it has none)`."""
    header = ("MODEL", "MAPE", "WITHIN 5 %", "WITHIN 10 %", "SPEARMAN", "KENDALL", "WRONG SIGN", "COSINE", "")
    body = []
    for kind, scores, reason in rows:
        mark = "<- chosen" if kind == chosen else reason
        figures = [percent(scores.get(name)) for name in ("mape", "within_5", "within_10")]
        ranks = [_decimal(scores.get(name)) for name in ("spearman", "kendall")]
        body.append((kind, *figures, *ranks, percent(scores.get("wrong_sign")), _decimal(scores.get("cosine")), mark))
    return table(header, body, left=(0, 8))


def _warning_lines(result: Result) -> list[str]:
    found = warnings_of(result)
    lines = [f"warning: {text}" for text in found[:MOST_WARNINGS]]
    rest = len(found) - len(lines)
    return [*lines, *([f"warning: {rest} more, in the report"] if rest else [])]


def _bench_row(name: str, item: Measurement) -> tuple[str, ...]:
    p99 = "-" if item.p99_ms is None else format_ms(item.p99_ms)
    return (
        name,
        interval(item.latency_ms, item.ci_ms),
        format_ms(item.p90_ms),
        p99,
        percent(item.mad_ms / item.latency_ms),
        str(item.round_count),
        str(item.lap_count),
        str(sum(item.void_rounds.values())),
    )


def _device(result: Result) -> str:
    for measurement in result.measurements.values():
        return device_sentence(measurement.fingerprint)
    return result.target.label()


def _network(result: Result, which: str) -> str:
    dense = which == "dense"
    measurement = result.measurements.get(which)
    latency = result.dense_ms if dense else result.measured_ms
    if latency is None:
        return ""
    if measurement is not None:
        value, low, high = measurement.statistic(result.statistic)
        parts = [f"{interval(value, (low, high))} measured"]
    elif not dense and result.measured_ci_ms is not None:
        parts = [f"{interval(latency, result.measured_ci_ms)} measured"]
    else:
        parts = [f"{format_ms(latency)} measured"]
    params, macs = (result.dense_params, result.dense_macs) if dense else (result.params, result.macs)
    if params is not None and macs is not None:
        parts += [f"{format_count(params)} params", f"{format_count(macs)} MACs"]
    score = result.dense_score if dense else result.score
    if score is not None:
        parts.append(f"{result.score_name} {_score(result, score)}{_score_change(result, dense)}")
    return ", ".join(parts)


def _score(result: Result, score: float) -> str:
    """`98.1 %`, or `31.20` where the name of the score says the unit."""
    text = score_text(result.score_name, score)
    return text if is_share(result.score_name) else text.split()[0]


def _score_change(result: Result, dense: bool) -> str:
    if dense or result.score is None or result.dense_score is None:
        return ""
    return f" ({change_text(result.score_name, result.score - result.dense_score)})"


def _of_dense(result: Result) -> str:
    return percent(result.budget_ms / result.dense_ms)


def _feasible(result: Result) -> str:
    if result.smallest_ms is None:
        return ""
    answer = "no" if result.verdict == "infeasible" else "yes"
    counted = "".join(f", {has:,} {words}" for words, (_, has) in result.exceeded.items())
    return f"{answer}: smallest allowed network {format_ms(result.smallest_ms)} measured{counted}"


def _search_sentence(result: Result) -> str:
    if result.verdict == "infeasible":
        return ""
    timed = len(result.predictions)
    candidates = "1 candidate" if timed == 1 else f"{timed} candidates"
    return f"{result.method}, seed {result.seed}, {candidates} measured, widths in steps of {result.tile}"


def _predicted_sentence(result: Result) -> str:
    if result.predicted_ms is None or result.measured_ms is None:
        return ""
    error = result.predicted_ms / result.measured_ms - 1
    return f"{format_ms(result.predicted_ms)} predicted ({percent(error, signed=True)})"


def _took(result: Result) -> str:
    parts = dict(result.stages)
    rest_s = result.seconds - sum(parts.values())
    if parts and rest_s >= 1:
        parts["the rest"] = rest_s
    stages = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in parts.items())
    return f"{format_duration(result.seconds)}{f': {stages}' if stages else ''}"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)) + 1e-12) if value else 0


def _decimal(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"
