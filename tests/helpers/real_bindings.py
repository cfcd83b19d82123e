"""Run in a process of its own: imports TensorRT's real bindings over empty libraries and says what our code finds.

`python real_bindings.py TOUCHES.json` prints one JSON document.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from hwprune.core.errors import HwpruneError
from hwprune.runtimes._tensorrt import api
from hwprune.runtimes._tensorrt.builder import BuildOptions, PlanBuilder, network_flags
from hwprune.runtimes._tensorrt.layers import Shares, make_profiler
from hwprune.runtimes._tensorrt.log import Log


def missing(trt: object, touches: list[list[str]]) -> list[str]:
    """The attributes that the bindings do not have."""
    found = []
    for kind, name in touches:
        holder = getattr(trt, kind, None) if kind else trt
        if not hasattr(holder, name):
            found.append(f"{kind}.{name}")
    return found


def main(path: str) -> None:
    sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
    trt = api.load()
    log = Log(trt)
    for severity in (trt.ILogger.INFO, trt.ILogger.WARNING, trt.ILogger.ERROR):
        log.logger.log(severity, f"said as {severity}")
    said = log.take()
    shares = Shares()
    profiler = make_profiler(trt, shares)
    profiler.report_layer_time("conv", 0.5)
    profiler.report_layer_time("relu", 1.5)
    try:
        PlanBuilder(trt, log, BuildOptions())
        refused = ""
    except HwpruneError as error:
        refused = f"{type(error).__name__}: {error}"
    document = {
        "version": trt.__version__,
        "missing": missing(trt, json.loads(Path(path).read_text())),
        "said": len(said),
        "errors_first": "ERROR" in said[0],
        "shares": shares.result(),
        "strong": api.is_strongly_typed(trt, "auto"),
        "flags": network_flags(trt, "auto"),
        "refused": refused,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1])
