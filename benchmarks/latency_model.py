"""How well does LPNet predict latency from 100 measured networks, how fast is measuring, and do its slopes hold?

    python benchmarks/latency_model.py                       # both spaces, about ten minutes
    python benchmarks/latency_model.py --space mobilenetv2   # one of them
    python benchmarks/latency_model.py --runtime openvino    # another runtime, or openvino:bf16
    python benchmarks/latency_model.py --runtime executorch --slow   # seconds to build a network: fewer held out

For each space: a latency table of 100 networks is measured as `hwprune profile` does it; 150 other networks are
measured with five times the laps and held out; a quarter of them is measured again later, which gives the label noise
(the MAPE a perfect model would show). Every kind of latency model is fitted on the 100 and judged by the 150. Then the
true slopes at two random networks: each group at its widest and its least width, everything else as it is.

Columns: MAPE; share of networks within 5 and 10 %; bias; Spearman and Kendall rank correlation; share of networks
within the stated one-sigma error (68 % when calibrated); wrong sign and cosine of one-group changes against the
measured ones. `--slow` holds out 50 networks and leaves the slopes out. Results:
`results/latency_model_<runtime>-<machine>.json` and `.txt`, and the staircase, `tile_<runtime>-<machine>.svg`.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch

from hwprune.core.events import Event, Progress
from hwprune.core.files import atomic_write_text, write_json
from hwprune.core.measurement import Protocol, Target
from hwprune.core.widths import Widths
from hwprune.devices import AbstractBoard, connect, resolve
from hwprune.devices.together import label_of
from hwprune.graph import ChannelGraph, OnnxTemplate, trace
from hwprune.latency.features import widths_array
from hwprune.latency.fit import KINDS, compare
from hwprune.latency.models._base import AbstractLatencyModel, make_model
from hwprune.latency.probe import detect_tile
from hwprune.latency.profile import profile
from hwprune.latency.samples import Samples
from hwprune.latency.scores import Scores, label_noise, score
from hwprune.latency.table import LatencyTable, TableRow
from hwprune.models import load_model
from hwprune.report.staircase import staircase_drawing

RESULTS = Path(__file__).parent / "results"
SPACES = {"mobilenetv2": ("mobilenetv2", (3, 96, 96)), "resnet56": ("resnet56?width=2", (3, 32, 32))}
HELD_OUT = replace(Protocol.sample(), name="held-out", rounds_min=4, rounds_max=4, laps=10)
HELD_OUT_SEED = 1000
BATCH = 5
CONTROL = "lpnet on widths"


@dataclass(frozen=True)
class Timing:
    """Wall-clock cost of the table: probe, 100 rows with their building, and each row on average."""

    tile: int
    probe_s: float
    rows_s: float
    table_s: float
    row_ms: float


class Bench:
    """One space on an open device."""

    def __init__(
        self, name: str, board: AbstractBoard, root: Path, options: argparse.Namespace, probed: tuple[int, float]
    ) -> None:
        spec, shape = SPACES[name]
        torch.manual_seed(0)
        model = load_model(spec, input_shape=shape).eval()
        example = torch.randn(1, *shape)
        self.name, self.board, self.root = name, board, root
        self.tile, self.probe_s = probed
        self.train, self.held_out, self.bases = options.train, options.held_out, options.slopes
        self.graph: ChannelGraph = trace(model, example)
        self.template = OnnxTemplate.export(model, self.graph)

    def run(self) -> dict[str, object]:
        """Everything for this space, as a JSON document."""
        timing, table = self.measure_table()
        held_out = self.measure_held_out(table)
        noise = self.measure_again(held_out)
        train, test = table.samples(), _without(held_out.samples().merged(), table)
        comparison, _ = compare(train, test, kinds=KINDS, noise=noise)
        # A runtime without layer times gives the table sum no basis.
        scores = {item.kind: item.scores for item in comparison if item.scores is not None}
        control = make_model("lpnet", features="widths").fit(train)
        predicted = control.predict_batch(test.values)
        models = {kind: make_model(kind).fit(train) for kind in scores}
        scores[CONTROL] = score(predicted, test.latency_ms, test.values, noise=noise)
        slopes = self.measure_slopes(table, {**models, CONTROL: control})
        return {
            "space": {"groups": len(table.space.groups), "networks": float(table.space.size)},
            "dense_ms": float(np.max(train.latency_ms)),
            "smallest_ms": float(np.min(train.latency_ms)),
            "timing": asdict(timing),
            "train": len(train.merged()),
            "held_out": len(test),
            "disturbed_rows": sum(row.disturbed for row in table.rows),
            "label_noise": noise,
            "train_label_noise": label_noise(_labels(table)),
            "models": {kind: found.to_json() for kind, found in scores.items()},
            "slopes": slopes,
        }

    def measure_table(self) -> tuple[Timing, LatencyTable]:
        """The table of training networks, as `hwprune profile` makes it."""
        begin = time.monotonic()
        table = self._table("train", self.tile, Protocol.sample())
        marks: list[float] = []

        def note(event: Event) -> None:
            if isinstance(event, Progress) and len(table.measured()) <= self.train and not table.layer_rows:
                marks.append(time.monotonic())

        self._fill(table, self.train, 0, note)
        rows_s = marks[(self.train - 1) // BATCH] - begin
        done = time.monotonic() - begin
        return Timing(self.tile, self.probe_s, rows_s, done, 1e3 * rows_s / self.train), table

    def measure_held_out(self, table: LatencyTable) -> LatencyTable:
        """Other networks, measured longer."""
        held_out = self._table("held-out", table.tile, HELD_OUT)
        self._fill(held_out, self.held_out, HELD_OUT_SEED, lambda event: None)
        return held_out

    def measure_again(self, table: LatencyTable) -> float | None:
        """The label noise, from a quarter of the held-out networks measured a second time."""
        chosen = [table.space.make(row.widths) for row in table.rows[10 : 10 + self.held_out // 4]]
        for row in self._measure(table, chosen, "again"):
            table.append(row, fingerprint=self.board.fingerprint)
        return label_noise(_labels(table))

    def measure_slopes(self, table: LatencyTable, models: dict[str, AbstractLatencyModel]) -> dict[str, object]:
        """Wrong signs and cosine of every group's whole change, widest to least, at two random networks."""
        space, rng = table.space, Random(7)
        found: dict[str, list[Scores]] = {kind: [] for kind in models}
        for _ in range(self.bases):
            base = space.sample(rng)
            rows = {
                base.replace(name, width)
                for name, allowed in zip(space.names, space.widths, strict=True)
                for width in (allowed[0], allowed[-1])
            }
            labels = [row for row in self._measure(table, sorted(rows, key=str), "slopes") if not row.disturbed]
            values = widths_array(space, [space.make(row.widths) for row in labels])
            measured = np.array([row.latency_ms for row in labels])
            for kind, model in models.items():
                found[kind].append(score(model.predict_batch(values), measured, values, noise=0.02))
        return {
            kind: {
                "wrong_sign": float(np.mean([item.wrong_sign for item in items])),
                "cosine": float(np.mean([item.cosine for item in items])),
                "changes": sum(item.pairs for item in items),
            }
            for kind, items in found.items()
            if items
        }

    def _measure(self, table: LatencyTable, networks: Sequence[Widths], session: str) -> list[TableRow]:
        rows = []
        for begin in range(0, len(networks), BATCH):
            batch = networks[begin : begin + BATCH]
            models = {str(place): self.template.at_widths(widths) for place, widths in enumerate(batch)}
            timed = self.board.measure(models, protocol=HELD_OUT, seed=begin)
            for place, widths in enumerate(batch):
                rows.append(TableRow.of(widths.values_tuple(), timed[str(place)], kind="uniform", session=session))
        return rows

    def _table(self, part: str, tile: int, protocol: Protocol) -> LatencyTable:
        return LatencyTable.obtain(
            self.root / part,
            model_name=self.name,
            graph=self.graph,
            space=self.graph.space(tile=tile),
            board=self.board,
            tile=tile,
            protocol=protocol,
        )

    def _fill(self, table: LatencyTable, count: int, seed: int, on_event) -> None:  # type: ignore[no-untyped-def]
        profile(
            self.template, self.graph, table.space, self.board, table=table, samples=count, seed=seed, on_event=on_event
        )


def _labels(table: LatencyTable) -> list[tuple[tuple[int, ...], float, str]]:
    return [(row.widths, row.latency_ms, row.session) for row in table.good_rows()]


def _without(samples: Samples, table: LatencyTable) -> Samples:
    """The networks that are not in the table."""
    trained = {row.widths for row in table.rows}
    return samples.take([place for place, row in enumerate(samples.values.tolist()) if tuple(row) not in trained])


def as_text(document: dict) -> str:  # type: ignore[type-arg]
    """The results as tables for RECORDS.md."""
    lines = [f"{document['machine']}, {document['target']}, one-minute load {document['load']}"]
    slower = ", ".join(
        f"{width} (than {wider})" for width, wider in document.get("probe", {}).get("slower_than_wider", ())
    )
    lines += [f"channels that are slower than more channels: {slower}"] if slower else []
    for name, found in document["spaces"].items():
        timing, noise = found["timing"], found["label_noise"]
        lines += [
            "",
            f"{name}: {found['space']['groups']} groups, {found['space']['networks']:.2g} networks, "
            f"{found['smallest_ms']:.3g} to {found['dense_ms']:.3g} ms, tile {timing['tile']}",
            f"  {found['train']} networks measured in {timing['rows_s']:.1f} s ({timing['row_ms']:.0f} ms each,"
            f" building included); table with layers and repeats {timing['table_s']:.1f} s,"
            f" probe {timing['probe_s']:.1f} s",
            f"  {found['held_out']} held out; label noise {100 * (noise or np.nan):.2f} % (held out), "
            f"{100 * (found['train_label_noise'] or np.nan):.2f} % (table); disturbed rows {found['disturbed_rows']}",
            "  model             MAPE  <=5 %  <=10 %   bias  Spearman  Kendall  in 1 s  | slopes: wrong sign  cosine",
        ]
        for kind, s in found["models"].items():
            sigma = s["within_sigma"]
            lines.append(
                f"  {kind:<16}{100 * s['mape']:5.2f}%  {100 * s['within_5']:4.0f}%   {100 * s['within_10']:4.0f}%"
                f"  {100 * s['bias']:+5.1f}%     {s['spearman']:.3f}    {s['kendall']:.3f}"
                f"    {'-' if sigma is None else f'{100 * sigma:.0f}%':>4}"
                f"  |            {_slope(found['slopes'].get(kind))}"
            )
    return "\n".join(lines) + "\n"


def _slope(found: dict[str, float] | None) -> str:
    return "   -       -" if found is None else f"{100 * found['wrong_sign']:4.1f}%   {found['cosine']:.3f}"


def main() -> None:
    """Measure, fit, print, and write the results."""
    options = _options()
    torch.set_num_threads(1)
    target = resolve(Target(runtime=options.runtime))
    with tempfile.TemporaryDirectory() as folder, connect(target) as board:
        begin = time.monotonic()
        probe = detect_tile(board)
        probe_s = time.monotonic() - begin
        root = options.tables or Path(folder)
        found = {}
        for name in options.space or SPACES:
            found[name] = Bench(name, board, root / name, options, (probe.tile, probe_s)).run()
        machine = board.fingerprint.cpu_model
        document = {
            "schema": "hwprune.latency_model_benchmark/1",
            "machine": machine,
            "target": board.label(),
            "load": Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else "unknown",
            "fingerprint": board.fingerprint.to_json(),
            "probe": probe.to_json(),
            "spaces": found,
        }
    print(as_text(document))
    slug = re.sub(r"[^a-z0-9]+", "-", f"{label_of(target)} {machine}".lower()).strip("-")
    write_json(options.out / f"latency_model_{slug}.json", document)
    atomic_write_text(options.out / f"latency_model_{slug}.txt", as_text(document))
    drawing = staircase_drawing(
        probe.curve,
        tile=probe.tile if probe.resolved else None,
        slower=dict(probe.slower_than_wider),
        label=document["target"],
    )
    atomic_write_text(options.out / f"tile_{slug}.svg", drawing)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, action="append", help="one of the spaces; both by default")
    parser.add_argument("--runtime", default=Target.runtime, help="a runtime of this CPU, or RUNTIME:PRECISION")
    parser.add_argument("--train", type=int, default=100, help="measured training networks")
    parser.add_argument("--held-out", type=int, help="measured held-out networks; 150, or 50 with --slow")
    parser.add_argument("--slopes", type=int, help="networks at which slopes are measured; 2, or none with --slow")
    parser.add_argument("--slow", action="store_true", help="for runtimes that take seconds to build a network")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--tables", type=Path, help="keep the tables in this folder")
    options = parser.parse_args()
    options.held_out = options.held_out or (50 if options.slow else 150)
    options.slopes = (0 if options.slow else 2) if options.slopes is None else options.slopes
    return options


if __name__ == "__main__":
    main()
