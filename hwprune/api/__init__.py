"""The verbs of the command line as Python functions. Options are keyword-only; nothing is changed in place."""

from __future__ import annotations

from hwprune.api._devices import bench, device, devices, doctor
from hwprune.api._latency import fit, inspect, predict, profile
from hwprune.api._runs import compare, comparison_folder, explain, export, finetune, report, search
from hwprune.devices.new import new_device
from hwprune.search.fleet import profile_devices
from hwprune.search.outcomes import BenchResult, Exported, Run, load

__all__ = [
    "BenchResult",
    "Exported",
    "Run",
    "bench",
    "compare",
    "comparison_folder",
    "device",
    "devices",
    "doctor",
    "explain",
    "export",
    "finetune",
    "fit",
    "inspect",
    "load",
    "new_device",
    "predict",
    "profile",
    "profile_devices",
    "report",
    "search",
]
