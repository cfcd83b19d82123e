"""The latency table: what was measured for one network, one search space and exactly one fingerprint.

A table is a folder, `<root>/<device>/<runtime>-<version>_<precision>_b<batch>_t<threads>/` and in it
`<model>-<space>-<fingerprint>-<operators>/`, with `table.json` (fingerprint, reference, space, operators, provenance),
`rows.jsonl` (whole networks) and `layers.jsonl` (layer times inside the runtime). The two journals are the truth and
only ever grow; a pandas frame is an export. The operators are stored with it, so that a latency model can be
fitted on a machine that never saw the network.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwprune.core.errors import TableError
from hwprune.core.files import Journal, create_json, read_json
from hwprune.core.measurement import Fingerprint, LayerTime, Protocol
from hwprune.core.ops import OpTemplate
from hwprune.core.widths import SearchSpace, Widths
from hwprune.latency.features import restrict
from hwprune.latency.plan import Kind
from hwprune.latency.row import TableRow
from hwprune.latency.samples import LayerSample, Samples

if TYPE_CHECKING:
    import pandas

    from hwprune.devices import AbstractBoard
    from hwprune.graph import ChannelGraph

__all__ = ["LatencyTable", "Provenance", "TableRow", "table_folder"]

SCHEMA = "hwprune.latency_table/1"
_ENOUGH = 10  # networks a latency model can be fitted on; below that a disturbed row is better than none


@dataclass(frozen=True)
class Provenance:
    """Where a table comes from: date (UTC), versions, host label and the protocol of its rows."""

    created: str
    hwprune_version: str
    host: str
    protocol: Protocol

    @classmethod
    def now(cls, protocol: Protocol) -> Provenance:
        """This moment on this machine."""
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        return cls(date, _version(), platform.node(), protocol)


@dataclass(frozen=True)
class LatencyTable:
    """Measured networks of one search space under one fingerprint. Make it with `create`, `open`, `find` or `obtain`.

    `reference_ms` is the reference kernel's time that all rows share; open the device with it so that milliseconds
    of different sessions agree. `tile` is the grid of the widths; `step` is what the target pads channels to, which
    latency models round to: the two differ where a finer grid was asked for. The first tables know the tile only.
    """

    folder: Path
    model_name: str
    fingerprint: Fingerprint
    reference_ms: float
    space: SearchSpace
    op_templates: tuple[OpTemplate, ...]
    tile: int
    step: int
    provenance: Provenance
    _rows: list[TableRow] = field(default_factory=list, repr=False, compare=False)
    _layers: list[LayerSample] = field(default_factory=list, repr=False, compare=False)
    damaged_lines: int = 0

    @classmethod
    def create(
        cls,
        root: str | Path,
        *,
        model_name: str,
        fingerprint: Fingerprint,
        reference_ms: float,
        space: SearchSpace,
        op_templates: Sequence[OpTemplate],
        tile: int,
        step: int | None = None,
        protocol: Protocol | None = None,
    ) -> LatencyTable:
        """A new, empty table in its place under `root`; without a `step` the target is taken to pad to the tile.

        Operators may depend on groups of the space only (`features.restrict` fixes the others). Raises `TableError`
        where a table already stands.
        """
        folder = table_folder(root, model_name, fingerprint, space, op_templates)
        if (folder / "table.json").exists():
            cls.open(folder).check(fingerprint)
            raise _stands_already(folder)
        used = {name for op in op_templates for name, _ in op.in_channels.terms + op.out_channels.terms}
        unknown = used - set(space.names)
        if unknown:
            raise TableError(f"operators depend on groups outside the space: {', '.join(sorted(unknown))}")
        provenance = Provenance.now(protocol or Protocol.sample())
        templates = tuple(op_templates)
        table = cls(folder, model_name, fingerprint, reference_ms, space, templates, tile, step or tile, provenance)
        try:
            create_json(folder / "table.json", table._header())
        except FileExistsError as error:
            raise _stands_already(folder) from error
        return table

    @classmethod
    def open(cls, folder: str | Path) -> LatencyTable:
        """The table in a folder; damaged lines of its journals are left out and counted in `damaged_lines`."""
        folder = Path(folder)
        if not (folder / "table.json").is_file():
            raise TableError(f"{folder} is not a latency table: it has no table.json", hint="run: hwprune profile")
        document = read_json(folder / "table.json")
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise TableError(
                f"{folder / 'table.json'} is not a latency table of the form {SCHEMA}",
                hint="it is of another version of hwprune: remove the folder and profile again",
            )
        try:
            return cls._from_header(folder, document)
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(
                f"the latency table in {folder} is corrupt: {error!r}", hint="remove the folder and profile again"
            ) from error

    @classmethod
    def find(
        cls,
        root: str | Path,
        *,
        model_name: str,
        fingerprint: Fingerprint,
        space: SearchSpace,
        op_templates: Sequence[OpTemplate],
    ) -> LatencyTable | None:
        """The table of this network, space and fingerprint under `root`; None where there is none.

        Tables whose folder is named without their operators, as they were first, are found too. Raises
        `TableError` when one stands there that was measured under another fingerprint.
        """
        for named in (op_templates, ()):
            folder = table_folder(root, model_name, fingerprint, space, named)
            if not (folder / "table.json").exists():
                continue
            table = cls.open(folder)
            if table.op_templates == tuple(op_templates):
                table.check(fingerprint)
                return table
        return None

    @classmethod
    def obtain(
        cls,
        root: str | Path,
        *,
        model_name: str,
        graph: ChannelGraph,
        space: SearchSpace,
        board: AbstractBoard,
        tile: int,
        step: int | None = None,
        protocol: Protocol | None = None,
    ) -> LatencyTable:
        """The table that belongs to a traced network on an open device: found, or created empty."""
        templates = restrict(graph.op_templates, space, graph.dense())
        find = partial(
            cls.find, root, model_name=model_name, fingerprint=board.fingerprint, space=space, op_templates=templates
        )
        found = find()
        if found is not None:
            return found
        try:
            return cls.create(
                root,
                model_name=model_name,
                fingerprint=board.fingerprint,
                reference_ms=board.reference_ms,
                space=space,
                op_templates=templates,
                tile=tile,
                step=step,
                protocol=protocol,
            )
        except TableError:
            found = find()  # another process was first: its reference is that of the table
            if found is None:
                raise
            return found

    @classmethod
    def _from_header(cls, folder: Path, document: Mapping[str, Any]) -> LatencyTable:
        rows, damaged = Journal(folder / "rows.jsonl").read()
        layers, damaged_layers = Journal(folder / "layers.jsonl").read()
        fingerprint = Fingerprint.from_json(document["fingerprint"])
        foreign = [number for number, row in enumerate(rows) if row["fingerprint"] != fingerprint.digest()]
        if foreign:
            raise TableError(
                f"row {foreign[0] + 1} of {folder / 'rows.jsonl'} was measured under another fingerprint",
                hint="rows of two tables were mixed by hand; remove the folder and profile again",
            )
        origin = document["provenance"]
        return cls(
            folder,
            str(document["model"]),
            fingerprint,
            float(document["reference_ms"]),
            SearchSpace.from_json(document["space"]),
            tuple(OpTemplate.from_json(op) for op in document["ops"]),
            int(document["tile"]),
            int(document.get("step", document["tile"])),
            Provenance(**{**origin, "protocol": Protocol.from_json(origin["protocol"])}),
            [TableRow.from_json(row["row"]) for row in rows],
            [_layer_sample(item["layers"]) for item in layers],
            damaged + damaged_layers,
        )

    def _header(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "model": self.model_name,
            "simulated": self.fingerprint.runtime == "simulated",
            "fingerprint": self.fingerprint.to_json(),
            "reference_ms": self.reference_ms,
            "tile": self.tile,
            "step": self.step,
            "provenance": {**asdict(self.provenance), "protocol": self.provenance.protocol.to_json()},
            "space": self.space.to_json(),
            "ops": [op.to_json() for op in self.op_templates],
        }

    @property
    def rows(self) -> tuple[TableRow, ...]:
        """All whole-network rows, in the order of measuring; a sub-network may occur more than once."""
        return tuple(self._rows)

    @property
    def layer_rows(self) -> tuple[LayerSample, ...]:
        """Layer times of the sub-networks that were also profiled inside the runtime."""
        return tuple(self._layers)

    def check(self, fingerprint: Fingerprint) -> None:
        """Raise `TableError` listing the fields in which a fingerprint differs from the table's."""
        differing = self.fingerprint.differences(fingerprint)
        if differing:
            raise TableError(
                f"the latency table in {self.folder} was measured under another fingerprint: {'; '.join(differing)}",
                hint="keep it and choose another folder for tables, or remove it and profile again",
            )

    def append(self, row: TableRow, *, fingerprint: Fingerprint) -> None:
        """Add a row that was measured under `fingerprint`; it is on the disk when this returns.

        Raises `TableError` for a foreign fingerprint and `UsageError` for widths outside the space.
        """
        self.check(fingerprint)
        self.space.check(self.space.make(row.widths))
        Journal(self.folder / "rows.jsonl").append({"fingerprint": fingerprint.digest(), "row": asdict(row)})
        self._rows.append(row)

    def append_layers(self, sample: LayerSample, *, fingerprint: Fingerprint) -> None:
        """Add the layer times of one sub-network; errors as in `append`."""
        self.check(fingerprint)
        self.space.check(self.space.make(sample.values))
        document = {"values": list(sample.values), "layers": [layer.to_json() for layer in sample.layers]}
        Journal(self.folder / "layers.jsonl").append({"fingerprint": fingerprint.digest(), "layers": document})
        self._layers.append(sample)

    def measured(self) -> frozenset[Widths]:
        """The sub-networks that have at least one row."""
        return frozenset(self.space.make(row.widths) for row in self._rows)

    def good_rows(
        self, *, kinds: Collection[Kind] | None = None, session: str = "", first: int | None = None
    ) -> tuple[TableRow, ...]:
        """The undisturbed rows: all, or those of `kinds` and those of a `session`.

        `first`: how many rows of the kinds the table had when it is asked for that time; those of the session count all
        the same. While fewer than 10 networks have an undisturbed row, the disturbed ones are among them.
        """
        of_the_kinds = [row for row in self._rows if kinds is None or row.kind in kinds]
        before = {id(row) for row in of_the_kinds[:first]}
        rows = tuple(row for row in self._rows if id(row) in before or (session and row.session == session))
        good = tuple(row for row in rows if not row.disturbed)
        return good if len({row.widths for row in good}) >= _ENOUGH else rows

    def samples(self, *, kinds: Collection[Kind] | None = None, session: str = "", first: int | None = None) -> Samples:
        """`good_rows` as arrays for a latency model. Raises `TableError` when there is none."""
        rows = self.good_rows(kinds=kinds, session=session, first=first)
        if not rows:
            raise TableError(f"the latency table in {self.folder} has no rows", hint="run: hwprune profile")
        values = np.array([row.widths for row in rows], dtype=np.int64)
        latency_ms = np.array([row.latency_ms for row in rows])
        return Samples(self.space, self.op_templates, self.step, values, latency_ms, self.layer_rows, self.fingerprint)

    def to_pandas(self) -> pandas.DataFrame:
        """One line a row: a column for each group's width, then latency, interval, laps, kind, session and the rest."""
        import pandas

        records = [
            {
                **dict(zip(self.space.names, row.widths, strict=True)),
                "latency_ms": row.latency_ms,
                "ci_low_ms": row.ci_ms[0],
                "ci_high_ms": row.ci_ms[1],
                "laps": len(row.ratios),
                "kind": row.kind,
                "session": row.session,
                "disturbed": row.disturbed,
                "wall_ms": row.wall_ms,
                "facts": "; ".join(f"{name} {value}" for name, value in row.facts),
                "notes": "; ".join(row.notes),
            }
            for row in self._rows
        ]
        return pandas.DataFrame.from_records(records)


def table_folder(
    root: str | Path,
    model_name: str,
    fingerprint: Fingerprint,
    space: SearchSpace,
    op_templates: Sequence[OpTemplate] = (),
) -> Path:
    """Where a table stands under `root`: target, then model, space, fingerprint and, where given, operators.

    The fingerprint is part of the name, so that tables of two machines lie side by side under one root; so are the
    operators, since a network of one name may have another image size or number of classes.
    """
    runtime = f"{fingerprint.runtime}-{fingerprint.runtime_version}"
    target = f"{runtime}_{fingerprint.precision}_b{fingerprint.batch}_t{fingerprint.threads}"
    name = f"{_slug(model_name)}-{space.signature()[:8]}-{fingerprint.digest()[:8]}"
    if op_templates:
        text = json.dumps([op.to_json() for op in op_templates], sort_keys=True)
        name = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return Path(root) / _slug(fingerprint.device) / _slug(target) / name


def _stands_already(folder: Path) -> TableError:
    return TableError(f"there is a latency table in {folder} already", hint="open it, or remove the folder")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def _version() -> str:
    try:
        return importlib.metadata.version("hwprune")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _layer_sample(document: Mapping[str, Any]) -> LayerSample:
    layers = tuple(LayerTime.from_json(layer) for layer in document["layers"])
    return LayerSample(tuple(int(width) for width in document["values"]), layers)
