"""What `hwprune doctor` says of an NVIDIA board: each finding with the exact command that mends it. None is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hwprune.runtimes._base import Check
from hwprune.runtimes._nvidia.jetson import each
from hwprune.runtimes._nvidia.nvml import GRAPHICS, MEMORY, SM, Nvml

if TYPE_CHECKING:
    from hwprune.runtimes._nvidia.jetson import Clock, Jetson

COOL_JETSON = "let it cool, with the fan at its highest speed: sudo jetson_clocks --fan"
LOCK_JETSON = (
    "sudo jetson_clocks --store && sudo jetson_clocks (undo: sudo jetson_clocks --restore; gone after a restart)"
)
LITTLE_ROOM, NO_ROOM = 15.0, 5.0  # degrees below the first limit
SUSTAINED = 0.8  # of the highest clock: what a GPU mostly holds without reaching its power limit


def jetson_findings(board: Jetson) -> tuple[Check, ...]:
    """The board, its power mode, clocks, temperature, and what has throttled it."""
    return tuple(_of_jetson(board))


def _of_jetson(board: Jetson) -> Iterator[Check]:
    yield Check("board", "pass", f"{board.model}, Jetson Linux {board.l4t or 'of unknown release'}")
    yield _power_mode(board)
    gpu = board.gpu_clock()
    yield _jetson_clock("GPU clock", () if gpu is None else (gpu,))
    yield _jetson_clock("CPU clock", board.cpu_clocks())
    yield _headroom(board.headroom(), COOL_JETSON)
    slowed = sorted(name for name, state in board.cooling().items() if state)
    if slowed:
        yield Check("throttling", "fail", f"slowed down now by {', '.join(slowed)}", COOL_JETSON)
    else:
        yield Check("throttling", "pass", "nothing slows the board down now")
    events = {name: count for name, count in board.over_current_events().items() if count}
    if events:
        counted = ", ".join(f"{name} {count}" for name, count in sorted(events.items()))
        fix = "use the power supply that came with the board, or a lower power mode: sudo nvpmodel -m ID"
        yield Check("power supply", "warn", f"throttled since its start for lack of power: {counted} events", fix)
    else:
        yield Check("power supply", "pass", "no over-current events since its start")


def _power_mode(board: Jetson) -> Check:
    mode = board.power_mode()
    others = ", ".join(f"{other.number} {other.name}" for other in board.power_modes())
    listed = f"; modes: {others}; another one: sudo nvpmodel -m ID, before clocks are locked" if others else ""
    if mode is None:
        fix = f"sudo nvpmodel -q says which; sudo nvpmodel -m ID sets one{f' of {others}' if others else ''}"
        return Check("power mode", "warn", "cannot be read; latencies differ between modes", fix)
    return Check("power mode", "pass", f"{mode}: latencies hold for this mode alone{listed}")


def _jetson_clock(name: str, clocks: tuple[Clock, ...]) -> Check:
    if not clocks or not all(clock.known for clock in clocks):
        what = "its bounds cannot be read" if clocks else "not found"
        return Check(name, "warn", f"{what}: whether it is locked cannot be told", LOCK_JETSON)
    if all(clock.locked for clock in clocks):
        return Check(name, "pass", f"locked at {each(str(clock.highest_mhz) for clock in clocks)} MHz")
    span, governor = each(str(clock) for clock in clocks), each(clock.governor for clock in clocks)
    return Check(name, "warn", f"moves with the load: {span}, governor {governor}; tables say so", LOCK_JETSON)


def _headroom(nearest: tuple[str, float, float] | None, cool: str) -> Check:
    if nearest is None:
        return Check("temperature", "pass", "no limits visible")
    zone, now, room = nearest
    detail = f"{zone} {now:.0f} C, {room:.0f} degrees below its first limit"
    if room >= LITTLE_ROOM:
        return Check("temperature", "pass", detail)
    return Check("temperature", "fail" if room < NO_ROOM else "warn", detail, cool)


def gpu_findings(card: Nvml | None) -> tuple[Check, ...]:
    """The GPU, its clocks, temperature, throttling and other users; one warning where NVML cannot be asked."""
    if card is None:
        detail = "NVML cannot be asked: throttling would go unseen"
        return (Check("GPU state", "warn", detail, "install the driver's library libnvidia-ml.so.1"),)
    return tuple(_of_gpu(card))


def _of_gpu(card: Nvml) -> Iterator[Check]:
    named = f"{card.name() or 'unnamed'}, driver {card.driver() or 'unknown'}"
    yield Check("GPU", "pass", f"number {card.number()} of nvidia-smi: {named}")
    yield _clock(card)
    cool = f"let it cool, or lock the clocks lower: {lock_commands(card)}"
    now, limit = card.reading().celsius, card.slowdown_celsius()
    if now is not None and limit is not None:
        yield _headroom(("GPU", float(now), float(limit - now)), cool)
    reasons = card.reasons()
    if reasons is None:
        yield Check("throttling", "warn", "this GPU does not tell", "compare repeated measurements by hand")
    else:
        slowed = [name for name, active in reasons.items() if active]
        detail = f"slowed down now: {', '.join(slowed)}" if slowed else "nothing slows the GPU down now"
        yield Check("throttling", "fail" if slowed else "pass", detail, cool if slowed else "")
    others = card.other_processes()
    if others:
        numbers = ", ".join(map(str, others))
        detail = f"processes {numbers} compute on this GPU; in a container one of them may be this one"
        yield Check("other programs", "warn", detail, "stop them, then measure")
    else:
        yield Check("other programs", "pass", "none computes on this GPU")


def _clock(card: Nvml) -> Check:
    """Always the commands: NVML reads clocks, not whether they are locked."""
    now, highest = card.clock_mhz(SM), card.highest_mhz(SM)
    known = f"{now} MHz now, at most {highest}" if now is not None and highest is not None else "not readable"
    detail = f"{known}; NVML does not tell whether it is locked, but a round in which it moves does not count"
    return Check("GPU clock", "warn", detail, lock_commands(card))


def lock_commands(card: Nvml) -> str:
    """The commands that fix the clocks of this GPU, and those that undo it."""
    graphics, memory = _sustained(card)
    smi = f"sudo nvidia-smi -i {card.number()}"
    memory_lock = f" && {smi} -lmc {memory},{memory}" if memory else ""
    chosen = f"{graphics},{graphics}" if graphics else "MHZ,MHZ"
    return f"{smi} -pm 1 && {smi} -lgc {chosen}{memory_lock} (undo: {smi} -rgc && {smi} -rmc)"


def _sustained(card: Nvml) -> tuple[int | None, int | None]:
    """(graphics, memory) MHz to lock: the highest memory clock, and a graphics clock that can be held."""
    supported = card.supported_mhz()
    if supported is None:
        highest = card.highest_mhz(GRAPHICS)
        return (None if highest is None else int(SUSTAINED * highest)), card.highest_mhz(MEMORY)
    memory, graphics = supported
    wanted = SUSTAINED * graphics[0]
    return next((clock for clock in graphics if clock <= wanted), graphics[-1]), memory
