"""What a run folder holds, as frozen data: the only thing a report, an explanation or a printed verdict reads.

The shapes below are the contract between the run (which writes) and the report (which reads):

- `result.json`: one `Result`, exactly what `hwprune search --json` prints. Keys without a default are required.
- `layers.json`: one `LayerProfile`, the in-network layer times of the dense and the pruned network.
- `journal.jsonl`: one event a line, `{"event": "SearchStep", "time_s": 12.3, ...the fields of the event}`, in a
  `core.files.Journal`. `time_s` counts from the start of the run. Records of other kinds may stand between.
- `run.toml`: the resolved configuration. `environment.json`: any flat facts about machine and versions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hwprune.core.comparison import Comparison
from hwprune.core.config import read_toml
from hwprune.core.errors import RunError, UsageError
from hwprune.core.events import Caution, Event, SearchStep
from hwprune.core.files import Journal, read_json
from hwprune.core.measurement import LayerTime, Measurement, Target, explain, is_warning
from hwprune.core.ops import OpKey

Verdict = Literal["pass", "miss", "infeasible"]
RESULT_SCHEMA = "hwprune.search/1"
EVENTS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}
SHIPPED = "shipped"  # among the scores of a run: what the file answers in its own precision


@dataclass(frozen=True)
class Candidate:
    """A network of the search that was timed on the device: predicted beside measured."""

    widths: Mapping[str, int]
    predicted_ms: float
    measured_ms: float
    measured_ci_ms: tuple[float, float]
    within_budget: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON document from which `from_json` makes an equal candidate."""
        return {**asdict(self), "widths": dict(self.widths), "measured_ci_ms": list(self.measured_ci_ms)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Candidate:
        """The candidate that `to_json` wrote."""
        return cls(**{**_known(cls, document), "measured_ci_ms": _interval(document["measured_ci_ms"])})


@dataclass(frozen=True)
class Result:
    """The answer of a run: `result.json` and `hwprune search --json`.

    An infeasible budget has no pruned network: `measured_ms`, `measured_ci_ms`, `predicted_ms` and `score` are then
    None, `widths` are the smallest allowed and `smallest_ms` is what they were measured to need.
    `params` and `macs` are those of `widths`, `max_params` and `max_macs` their limits, None for none.
    `utilisation` is `measured_ms / budget_ms`. `measurements` has the keys `dense` and `pruned`; `comparison` is
    pruned against dense, from a session of the two. `predictions` are all candidates that were timed, in order.
    `fit` maps a latency model's name to its held-out scores (`mape`, `within_5`, `within_10`, `spearman`,
    `kendall`, `wrong_sign`, `label_noise`), shares and errors as fractions of one; `latency_model` is the one used.
    `scores` follows the network through the stages: `dense`, `cut`, `recalibrated`, `finetuned`; and `shipped`, the
    file itself, where it computes in another precision than the network was trained in. `score` is the last of them.
    `warnings` are names that `core.measurement.explain` knows, of the measurements, and sentences, of the run.
    """

    verdict: Verdict
    budget_ms: float
    dense_ms: float
    measured_ms: float | None
    measured_ci_ms: tuple[float, float] | None
    predicted_ms: float | None
    score: float | None
    dense_score: float | None
    widths: Mapping[str, int]
    dense_widths: Mapping[str, int]
    run_dir: str
    seconds: float
    target: Target
    statistic: str
    method: str
    seed: int
    simulated: bool
    utilisation: float | None
    dense_params: int
    params: int | None
    dense_macs: int
    macs: int | None
    max_params: int | None = None
    max_macs: int | None = None
    model: str = ""
    data: str = ""
    score_name: str = "score"
    smallest_ms: float | None = None
    tile: int = 1
    stages: Mapping[str, float] = field(default_factory=dict)
    image_passes: int = 0
    warnings: tuple[str, ...] = ()
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    comparison: Comparison | None = None
    predictions: tuple[Candidate, ...] = ()
    fit: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    latency_model: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def limits(self) -> dict[str, tuple[int, int | None]]:
        """Each limit beside the latency: what it counts, the most that is allowed, and what the network has."""
        found = {"parameters": (self.max_params, self.params), "MACs": (self.max_macs, self.macs)}
        return {words: (most, has) for words, (most, has) in found.items() if most is not None}

    @property
    def exceeded(self) -> dict[str, tuple[int, int]]:
        """The limits that even the smallest network is over; a pruned network is over none."""
        return {words: (most, has) for words, (most, has) in self.limits.items() if has is not None and has > most}

    @property
    def measured_warnings(self) -> dict[str, tuple[str, ...]]:
        """What each measurement warns of, as sentences with advice."""
        return {name: tuple(map(explain, item.warnings)) for name, item in self.measurements.items()}

    @property
    def cautions(self) -> tuple[str, ...]:
        """What else the run warns of: the sentences in `warnings`, once each, that no measurement says already."""
        said = {text for texts in self.measured_warnings.values() for text in texts}
        return tuple(dict.fromkeys(text for text in self.warnings if not is_warning(text) and text not in said))

    def to_json(self) -> dict[str, Any]:
        """The document of `result.json`: `schema` first, units in the keys."""
        document: dict[str, Any] = {"schema": RESULT_SCHEMA}
        for entry in dataclasses.fields(self):
            document[entry.name] = getattr(self, entry.name)
        document["widths"] = dict(self.widths)
        document["dense_widths"] = dict(self.dense_widths)
        document["target"] = asdict(self.target)
        document["measurements"] = {name: value.to_json() for name, value in self.measurements.items()}
        document["comparison"] = None if self.comparison is None else self.comparison.to_json()
        document["predictions"] = [candidate.to_json() for candidate in self.predictions]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, where: str = "result.json") -> Result:
        """The result that `to_json` wrote; `RunError` naming a missing key. Unknown keys are left out."""
        values = _known(cls, document)
        missing = [entry.name for entry in dataclasses.fields(cls) if entry.name not in values and _required(entry)]
        if missing:
            raise RunError(f"{where} lacks the key '{missing[0]}'", hint="the run that wrote it did not finish")
        ci = values["measured_ci_ms"]
        comparison = values.get("comparison")
        values.update(
            measured_ci_ms=None if ci is None else _interval(ci),
            target=Target(**values["target"]),
            warnings=tuple(values.get("warnings", ())),
            measurements={name: Measurement.from_json(item) for name, item in values.get("measurements", {}).items()},
            comparison=None if comparison is None else Comparison.from_json(comparison),
            predictions=tuple(Candidate.from_json(item) for item in values.get("predictions", ())),
        )
        return cls(**values)


@dataclass(frozen=True)
class NamedOp:
    """An operator with concrete shapes and the dotted module path that ran it (`OpTemplate.name`)."""

    name: str
    op: OpKey

    def to_json(self) -> dict[str, Any]:
        """A flat JSON document: `name` and the fields of `OpKey`."""
        return {"name": self.name, **asdict(self.op)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> NamedOp:
        """The operator that `to_json` wrote."""
        fields = dict(document)
        name = str(fields.pop("name"))
        for key in ("kernel", "stride", "in_size", "out_size"):
            fields[key] = (int(fields[key][0]), int(fields[key][1]))
        return cls(name, OpKey(**fields))


@dataclass(frozen=True)
class LayerProfile:
    """In-network layer times of the dense and the pruned network, with the operators of each: `layers.json`.

    `tile`: the step in channels at which this target's latency changes, as the probe found it.
    """

    tile: int
    dense: tuple[LayerTime, ...]
    pruned: tuple[LayerTime, ...]
    dense_ops: tuple[NamedOp, ...]
    pruned_ops: tuple[NamedOp, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `layers.json`."""
        return {
            "schema": "hwprune.layers/1",
            "tile": self.tile,
            "dense": [layer.to_json() for layer in self.dense],
            "pruned": [layer.to_json() for layer in self.pruned],
            "dense_ops": [named.to_json() for named in self.dense_ops],
            "pruned_ops": [named.to_json() for named in self.pruned_ops],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LayerProfile:
        """The profile that `to_json` wrote."""
        return cls(
            tile=int(document["tile"]),
            dense=tuple(LayerTime.from_json(item) for item in document["dense"]),
            pruned=tuple(LayerTime.from_json(item) for item in document["pruned"]),
            dense_ops=tuple(NamedOp.from_json(item) for item in document["dense_ops"]),
            pruned_ops=tuple(NamedOp.from_json(item) for item in document["pruned_ops"]),
        )


@dataclass(frozen=True)
class TimedEvent:
    """An event of the run and the seconds since the run began."""

    time_s: float
    event: Event

    def to_json(self) -> dict[str, Any]:
        """The journal's record: `event` (the class name), `time_s`, then the fields."""
        fields = {entry.name: getattr(self.event, entry.name) for entry in dataclasses.fields(self.event)}
        return {"event": type(self.event).__name__, "time_s": self.time_s, **fields}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TimedEvent | None:
        """The event of a journal record, or None when the record is of another kind."""
        kind = EVENTS.get(str(record.get("event")))
        if kind is None:
            return None
        values = _known(kind, record)
        if "measured_ci_ms" in values:
            values["measured_ci_ms"] = _interval(values["measured_ci_ms"])
        return cls(float(record.get("time_s", 0.0)), kind(**values))


@dataclass(frozen=True)
class RunData:
    """A finished run folder. `layers` is None when the runtime cannot time layers or the budget is infeasible."""

    folder: Path
    result: Result
    layers: LayerProfile | None = None
    events: tuple[TimedEvent, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    damaged_records: int = 0

    @classmethod
    def read(cls, folder: str | Path) -> RunData:
        """Everything the folder holds.

        Raises `RunError` when it is no run folder, or the run in it did not finish.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RunError(f"no run folder {folder}", hint="name a folder that `hwprune search` wrote, or `last`")
        if not (folder / "result.json").exists():
            raise RunError(
                f"{folder} holds no result.json: it is no run, or the run did not finish",
                hint="the command that started the run continues it",
            )
        layers = folder / "layers.json"
        records, damaged = Journal(folder / "journal.jsonl").read()
        timed = (TimedEvent.from_json(record) for record in records)
        try:
            return cls(
                folder=folder,
                result=Result.from_json(read_json(folder / "result.json"), where=str(folder / "result.json")),
                layers=LayerProfile.from_json(read_json(layers)) if layers.exists() else None,
                events=tuple(event for event in timed if event is not None),
                config=read_toml(folder / "run.toml") if (folder / "run.toml").exists() else {},
                environment=_mapping(folder / "environment.json"),
                damaged_records=damaged,
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise RunError(
                f"{folder} is damaged: {type(error).__name__} {error}",
                hint="repeat the command that made it with another --run-dir",
            ) from error

    def cautions(self) -> tuple[Caution, ...]:
        """What the run cautioned against, each text once: those of the journal with their hints, then the result's."""
        told = {item.event.text: item.event for item in self.events if isinstance(item.event, Caution)}
        told.update({text: Caution(text) for text in self.result.warnings if text not in told})
        kept = replace(self.result, warnings=tuple(told)).cautions
        return tuple(told[text] for text in kept)

    def search_steps(self) -> tuple[tuple[float, SearchStep], ...]:
        """(seconds, event) of every step of the search, in order; of what a resumed run did again the later."""
        last = {e.event.step: (e.time_s, e.event) for e in self.events if isinstance(e.event, SearchStep)}
        return tuple(last[step] for step in sorted(last))


def _known(cls: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in dataclasses.fields(cls)}
    return {key: value for key, value in document.items() if key in names}


def _required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _interval(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)


def _mapping(path: Path) -> dict[str, Any]:
    document = read_json(path) if path.exists() else {}
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a JSON object")
    return document
