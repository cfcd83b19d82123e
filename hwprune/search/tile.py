"""The tile of a target: probed once, kept beside the target's tables as data and as a drawing of the staircase."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwprune.core.errors import NetworkUnfit
from hwprune.core.events import Caution, Note, OnEvent, ignore
from hwprune.core.files import atomic_write_text, read_json, write_json
from hwprune.core.measurement import Fingerprint
from hwprune.core.widths import SearchSpace
from hwprune.devices import AbstractBoard
from hwprune.graph import ChannelGraph
from hwprune.latency.probe import TileProbe, detect_tile, worthwhile
from hwprune.latency.table import LatencyTable, table_folder
from hwprune.report.staircase import staircase_drawing

DATA = "tile.json"
LEAST_NETWORKS = 30  # a space that is worth a latency model: some to fit it on, some to judge it by


def target_space(
    graph: ChannelGraph,
    board: AbstractBoard,
    tables: Path,
    *,
    tile: int = 0,
    min_keep: float,
    depth: bool = False,
    seed: int = 0,
    on_event: OnEvent = ignore,
) -> tuple[SearchSpace, int]:
    """The search space on the target's tile, and that tile (0: by the probe).

    A width that the probe found slower than a wider one of the same group is left out. A small network may have next
    to no widths on the target's tile: it gets a finer grid, although the widths between two tiles save little time.
    """
    probe = None if tile else known_probe(board, tables, seed, on_event)
    if probe is None:
        return graph.space(tile=tile, min_keep=min_keep, depth=depth), tile
    tile = probe.tile
    space = graph.space(tile=tile, min_keep=min_keep, depth=depth)
    while space.size < LEAST_NETWORKS and tile > 1:
        tile //= 2
        space = graph.space(tile=tile, min_keep=min_keep, depth=depth)
    if tile < probe.tile:
        on_event(Note(f"too few widths at {probe.tile} channels for a search: steps of {tile} are searched"))
    good = worthwhile(space, probe)
    pairs = zip(space.widths, good.widths, strict=True)
    left_out = sorted({width for before, after in pairs for width in set(before) - set(after)})
    if left_out:
        on_event(Note(f"widths left out, since wider ones are faster: {', '.join(map(str, left_out))}"))
    return good, tile


def known_probe(board: AbstractBoard, tables: Path, seed: int, on_event: OnEvent = ignore) -> TileProbe:
    """What the probe found on the target: probed once, then read from `tile.json` beside the target's tables."""
    probe = _known_probe(board, _target_folder(tables, board.fingerprint), seed)
    for text in probe_sentences(probe):
        on_event(Note(text))
    return probe


def model_step(board: AbstractBoard, tables: Path, tile: int, seed: int, on_event: OnEvent = ignore) -> int:
    """The step in channels that latency models round to, for widths on a grid of `tile`: that of the hardware.

    A model that rounds to a finer grid is wrong by what most of a step seems to save: 7.7 % where it could be 1.0 %
    (digits_resnet, ONNX Runtime, steps of 16 on a grid of 4). Where the probe sees no step, or the target cannot be
    probed, it is the grid.
    """
    try:
        probe = _known_probe(board, _target_folder(tables, board.fingerprint), seed)
    except NetworkUnfit as error:
        on_event(Caution(f"the target cannot be probed for its step: {error.message}", error.hint))
        return tile
    step = probe.tile if probe.resolved else tile
    if step != tile:
        on_event(Note(f"latency steps every {step} channels on this target, widths every {tile}"))
    return step


def padding_step(board: AbstractBoard, table: LatencyTable, seed: int) -> int:
    """The step to which the target of a table pads channels, whatever grid the table's widths lie on."""
    probe = _known_probe(board, table.folder.parent, seed)
    return probe.tile if probe.resolved else 1


def probe_of(table: LatencyTable) -> TileProbe | None:
    """What the probe found on the target of a table; None where none was run, as with `--tile`."""
    path = table.folder.parent / DATA
    kept = read_json(path) if path.exists() else {}
    found = kept.get(table.fingerprint.digest())
    return None if found is None else TileProbe.from_json(found)


def drawing_of(folder: Path, digest: str) -> Path:
    """The picture of the staircase of one fingerprint, beside the tables of its target."""
    return folder / f"tile-{digest}.svg"


def probe_sentences(probe: TileProbe) -> tuple[str, ...]:
    """The step of the latency, or that none was seen, and the widths that are slower than a wider one."""
    step = f"latency steps every {probe.tile} channels on this target"
    if not probe.resolved:
        step = f"latency hardly depends on the width on this target; widths go in steps of {probe.tile} channels"
    slower = probe.slower_than_wider
    if not slower:
        return (step,)
    listed = ", ".join(f"{width} (than {wider})" for width, wider in slower)
    return step, f"channels that are slower than more channels: {listed}"


def _known_probe(board: AbstractBoard, folder: Path, seed: int) -> TileProbe:
    digest = board.fingerprint.digest()
    path = folder / DATA
    kept = _read(path)
    if digest in kept:
        probe = TileProbe.from_json(kept[digest])
        if drawing_of(folder, digest).exists():
            return probe
    else:
        probe = detect_tile(board, seed=seed)
        write_json(path, {**_read(path), digest: probe.to_json()})  # another target may have been probed meanwhile
    drawing = staircase_drawing(
        probe.curve,
        tile=probe.tile if probe.resolved else None,
        slower=dict(probe.slower_than_wider),
        label=board.label(),
    )
    atomic_write_text(drawing_of(folder, digest), drawing)
    return probe


def _read(path: Path) -> dict[str, Any]:
    """Fingerprint digest -> probe."""
    return dict(read_json(path)) if path.exists() else {}


def _target_folder(tables: Path, fingerprint: Fingerprint) -> Path:
    return table_folder(tables, "any", fingerprint, SearchSpace((), ())).parent
