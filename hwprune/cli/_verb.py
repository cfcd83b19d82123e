"""Turns a plain function into a verb: adds the flags that every verb has, prints what the function returns."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer
from typer.core import TyperArgument, TyperCommand

from hwprune.cli._config import OF_A_RUN, ONE_SETTING, PER_CALL, Default, resolved_toml
from hwprune.cli._console import Outcome, Streams
from hwprune.cli._flags import COMMON_FLAGS, VARIABLES, Common, Flag, check_device
from hwprune.cli._flags import parameters as flag_parameters
from hwprune.cli._progress import ProgressDisplay
from hwprune.cli._stop import Stop
from hwprune.core.errors import UsageError
from hwprune.core.events import OnEvent
from hwprune.core.specs import at_home
from hwprune.core.units import parse_shape

ORIGINS = {"COMMANDLINE": "flag", "DEFAULT": "default"}
PLACES = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")  # the higher overrides the lower


@dataclass(frozen=True)
class Call:
    """What a verb's function gets besides its own flags."""

    common: Common
    streams: Streams

    def run(self, name: str) -> str:
        """The run that a verb reads: the one that was named, else that of `--run-dir`."""
        return str(self.common.run_dir) if name == "last" and self.common.run_dir is not None else name

    @contextmanager
    def job(self) -> Iterator[tuple[OnEvent, Callable[[], bool]]]:
        """`on_event` and `stop` for a long job: progress on stderr, Ctrl-C once finishes the step in hand."""
        with ProgressDisplay(self.streams) as display, Stop(display.say) as stop:
            yield display, stop

    @contextmanager
    def watch(self) -> Iterator[OnEvent]:
        """`on_event` for a job that has nothing to save: Ctrl-C stops it at once."""
        with ProgressDisplay(self.streams) as display:
            yield display


class VerbCommand(TyperCommand):
    """A command whose help speaks of no types: a switch takes no value, the name of an argument says what it is."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The flags and arguments, as help shows them."""
        found: list[Any] = list(super().get_params(ctx))
        for param in found:
            if isinstance(param, TyperArgument):
                param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]  # typer has no setting for it
            elif param.is_flag:
                param.metavar = " "
        return found


def register(
    app: typer.Typer,
    function: Callable[..., Outcome],
    *,
    example: str,
    shared: tuple[Flag, ...] = (),
    cls: type[VerbCommand] = VerbCommand,
    is_new: Callable[[Mapping[str, Any]], bool] = lambda values: False,
) -> None:
    """Add `function(call, **flags) -> Outcome` to the app under its own name.

    `shared` are flags of several verbs, which the function takes as `**shared` and passes on as they are. `is_new` says
    of a verb in `OF_A_RUN` whether these flags name something other than a run.
    """
    parameters = signature_of(function, shared)
    for item in parameters:
        for info in get_args(item.annotation)[1:]:
            info.show_envvar = False  # said once for all flags, in the help of `--config`

    def run(ctx: typer.Context, **values: Any) -> int:
        shared = {name: _at_home(values.pop(name)) for name in Common.__dataclass_fields__ if name in values}
        common = Common(**shared)
        streams = Streams(common.json, common.verbosity, common.color.value)
        if ctx.obj is not None:
            ctx.obj.streams = streams
        values.update(_of_no_run(ctx) if is_new(values) else _of_the_run(ctx))
        values.update(_one_of_two(ctx))
        if common.print_config:
            _print_config(str(ctx.info_name), streams, *_resolved(ctx))
            return 0
        check_device(values.get("device", ""))
        values = {name: _at_home(value) for name, value in values.items()}
        with redirect_stdout(sys.stderr) if common.json else nullcontext():  # a user's own file may print
            outcome = function(Call(common, streams), **values)
        streams.result(f"hwprune.{ctx.info_name}/1", outcome)
        return outcome.code

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {item.name: item.annotation for item in parameters}
    run.__doc__ = _reflow(function.__doc__ or "")
    app.command(
        function.__name__,
        cls=cls,
        epilog=f"Example:  {example}",
        context_settings={"auto_envvar_prefix": "HWPRUNE", "help_option_names": ["-h", "--help"]},
    )(run)


def signature_of(function: Callable[..., Outcome], shared: tuple[Flag, ...] = ()) -> list[inspect.Parameter]:
    """The parameters that typer reads: the context, the verb's own flags, the shared ones, those of every verb."""
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    own = [
        item.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for item in inspect.signature(function, eval_str=True).parameters.values()
        if item.name != "call" and item.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    return [context, *own, *flag_parameters((*shared, *COMMON_FLAGS))]


def _print_config(verb: str, streams: Streams, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    if not streams.as_json:
        typer.echo(resolved_toml(verb, values, origins), nl=False)
        return
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    document = {name: {"value": value, "from": origins[name]} for name, value in plain.items()}
    streams.document(f"hwprune.{verb}.config/1", document)


def _at_home(value: Any) -> Any:
    return at_home(value) if isinstance(value, Path) else value


def _reflow(text: str) -> str:
    """A docstring with each paragraph on one line, for the terminal to wrap."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


def example_shape(text: str | None) -> tuple[int, ...] | None:
    """The shape behind `--input`, None when it is not given."""
    return None if text is None else parse_shape(text)


def parse_widths(text: str | None) -> dict[str, int] | None:
    """Widths from `GROUP=UNITS,GROUP=UNITS`, or from a JSON file (a mapping, or a document with `widths`)."""
    if text is None:
        return None
    if Path(text).suffix == ".json":
        from hwprune.core.files import read_json

        document = read_json(text)
        pairs = document.get("widths", document) if isinstance(document, dict) else {}
    else:
        parts = [part.partition("=")[::2] for part in text.split(",")]
        pairs = {name.strip(): units for name, units in parts}
        if len(pairs) < len(parts):
            raise UsageError(f"--widths {text} names a group twice", hint="give each group one width")
    try:
        return {str(name).strip(): int(units) for name, units in pairs.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--widths {text} does not give one whole number a group", hint="write it as GROUP=UNITS,GROUP=UNITS"
        ) from error


def _of_no_run(ctx: typer.Context) -> dict[str, Any]:
    """The values that a file's top gives to flags for which a run would have its own."""
    filled = {}
    params: dict[str, Any] = {str(param.name): param for param in ctx.command.params}
    apart: dict[str, Default] = ctx.meta.get("hwprune.of_a_run", {})
    for name, default in apart.items():
        if _place(ctx, name) == "DEFAULT":
            filled[name] = params[name].process_value(ctx, default.value)
            ctx.meta[f"hwprune.config.{name}"] = default.file
            _resolve(ctx, name, filled[name], "DEFAULT_MAP")
    return filled


def _of_the_run(ctx: typer.Context) -> dict[str, Any]:
    """None for what a variable says that is meant for the next search, where the run has its own."""
    kept: dict[str, Any] = {}
    for name in OF_A_RUN.get(str(ctx.info_name), ()):
        if _place(ctx, name) == "ENVIRONMENT":
            kept[name] = None
            _resolve(ctx, name, None, "DEFAULT")
    return kept


def _one_of_two(ctx: typer.Context) -> dict[str, Any]:
    """None for the spelling of a setting that another one overrides. Raises `UsageError` where neither does."""
    dropped: dict[str, Any] = {}
    for name, other in ONE_SETTING.items():
        if ctx.params.get(name) is None or ctx.params.get(other) is None:
            continue
        place = _place(ctx, name)
        higher = PLACES.index(_place(ctx, other)) - PLACES.index(place)
        if higher == 0:
            where = "" if place == "COMMANDLINE" else f"{origin(ctx, name, place)}: "
            both = " and ".join(f"--{key.replace('_', '-')} {ctx.params[key]}" for key in (name, other))
            raise UsageError(f"{where}{both} are two budgets", hint="give one of them")
        if higher > 0:
            dropped[name] = None
            _resolve(ctx, name, None, "DEFAULT")
    return dropped


def _place(ctx: typer.Context, name: str) -> str:
    source = ctx.get_parameter_source(name)
    return "DEFAULT" if source is None else source.name


def _resolve(ctx: typer.Context, name: str, value: Any, place: str) -> None:
    """Change a flag's value and where it is said to come from."""
    ctx.params[name] = value
    ctx.set_parameter_source(name, type(ctx.get_parameter_source(name))[place])  # type: ignore[index]  # an enum


def _resolved(ctx: typer.Context) -> tuple[dict[str, Any], dict[str, str]]:
    values, origins = {}, {}
    for name, value in ctx.params.items():
        if name in PER_CALL:
            continue
        values[name] = value.value if isinstance(value, Enum) else value
        origins[name] = origin(ctx, name, _place(ctx, name))
    return values, origins


def origin(ctx: typer.Context, name: str, source: str) -> str:
    """Where a flag's value came from, for people: `flag`, `HWPRUNE_DEVICE`, `hwprune.toml`, `default`."""
    if source == "ENVIRONMENT":
        return VARIABLES.get(name, f"HWPRUNE_{name.upper()}")
    if source == "DEFAULT_MAP":
        return str(ctx.meta.get(f"hwprune.config.{name}", "file"))
    return ORIGINS.get(source, "default")
