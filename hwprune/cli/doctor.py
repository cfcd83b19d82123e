"""`hwprune doctor`: is this device fit to measure on?"""

from __future__ import annotations

import typer

from hwprune.cli import _flags as flags
from hwprune.cli._console import Outcome
from hwprune.cli._verb import Call, register

EXAMPLE = "hwprune doctor --device cpu"


def doctor(
    call: Call,
    device: flags.Device = "cpu",
    runtime: flags.Runtime = None,
    threads: flags.Threads = 1,
) -> Outcome:
    """Check a device: reachable, quiet enough to measure on, and how wide an interval to expect."""
    from hwprune import api

    checks = api.doctor(device, runtime=runtime, threads=threads)
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        status = "FAIL" if check.status == "fail" else check.status
        lines.append(f"  {status:<4}  {check.name:<{width}}  {check.detail}")
        if check.fix and check.status != "pass":
            lines.append(f"  {'':<4}  {'':<{width}}  fix: {check.fix}")
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    lines.append(f"{_count(failed, 'check')} failed, {_count(warned, 'warning')}")
    document = {
        "device": device,
        "verdict": "fail" if failed else "pass",
        "checks": [check.to_json() for check in checks],
    }
    return Outcome("\n".join([device, *lines]), document, int(failed > 0))


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    register(app, doctor, example=EXAMPLE)
