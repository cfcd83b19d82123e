"""Does every search end within its budget, by its own final measurement, and use it?

    python benchmarks/budget_matrix.py                      # the digits network, five budgets; about 6 minutes
    python benchmarks/budget_matrix.py --multipliers        # W-Gates at 45 and 30 %: closed form against dual ascent
    python benchmarks/budget_matrix.py --budgets 60 --methods all      # every method and control
    python benchmarks/budget_matrix.py --budgets 60 --runtimes openvino openvino:int8 ncnn     # other runtimes

Everything is measured on this machine, through ONNX Runtime where no other is named. The dense network is trained
once; every run profiles into one shared table, searches, settles, finetunes, exports and measures. Columns: measured
latency and its 95 % interval, the budget in that session, the share of it that is used, candidates timed on the way,
test top-1.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import torch

from hwprune import api
from hwprune.core.files import write_json
from hwprune.methods import names
from hwprune.report.run_data import Result

RESULTS = Path(__file__).parent / "results"
BUDGETS = (90, 75, 60, 45, 30)


def run(folder: Path, budget: int, method: str, options: dict[str, str], runtime: str, seed: int) -> Result:
    """One search; the first one trains the dense network, the others take its weights."""
    weights = folder / "dense.safetensors"
    name = "_".join([method, str(budget), *options.values(), runtime.replace(":", "-"), f"s{seed}"])
    found = api.search(
        "digits_resnet",
        "digits",
        latency=f"{budget}%",
        method=method,
        options=options,
        runtime=runtime,
        weights=weights if weights.exists() else None,
        run_dir=folder / name,
        tables=folder / "tables",
        seed=seed,
    )
    if not weights.exists():
        weights.write_bytes((folder / name / "dense.safetensors").read_bytes())
    return found.result


def row(budget: int, label: str, result: Result) -> dict[str, object]:
    """The figures of one run."""
    return {
        "budget": budget,
        "label": label,
        "verdict": result.verdict,
        "measured_ms": result.measured_ms,
        "measured_ci_ms": result.measured_ci_ms,
        "budget_ms": result.budget_ms,
        "utilisation": result.utilisation,
        "candidates": len(result.predictions),
        "top1": result.score,
        "dense_top1": result.dense_score,
        "seconds": result.seconds,
    }


def as_text(rows: list[dict[str, object]]) -> str:
    """The Markdown table of RECORDS.md."""
    lines = [
        "| budget | method | verdict | measured ms [95 %] | budget ms | used | candidates | top-1 % | s |",
        "|--:|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for item in rows:
        interval = item["measured_ci_ms"]
        assert isinstance(interval, tuple)
        lines.append(
            f"| {item['budget']} % | {item['label']} | {item['verdict']} | {item['measured_ms']:.4f} "
            f"[{interval[0]:.4f}, {interval[1]:.4f}] | {item['budget_ms']:.4f} | {item['utilisation']:.1%} "
            f"| {item['candidates']} | {100 * float(str(item['top1'])):.2f} | {item['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the matrix and write `results/budget_matrix.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["greedy"])
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--multipliers", action="store_true", help="compare the two multipliers instead")
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    methods = names() if options.methods == ["all"] else options.methods
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in options.seeds:
            if options.multipliers:
                cells = [(b, "wgates", {"multiplier": m}) for b in (45, 30) for m in ("closed_form", "dual")]
            else:
                cells = [(b, method, {}) for method in methods for b in options.budgets]
            for runtime, (budget, method, chosen) in itertools.product(options.runtimes, cells):
                label = " ".join([method, *chosen.values(), *([runtime] if runtime != "onnxruntime" else [])])
                rows.append(row(budget, label, run(folder, budget, method, chosen, runtime, seed)))
                print(as_text(rows[-1:]).splitlines()[-1], flush=True)
    name = "multipliers" if options.multipliers else "all_methods" if len(methods) > 1 else "budget_matrix"
    name = "runtimes" if options.runtimes != ["onnxruntime"] else name
    write_json(RESULTS / f"{name}.json", {"rows": rows})
    print(as_text(rows))


if __name__ == "__main__":
    main()
