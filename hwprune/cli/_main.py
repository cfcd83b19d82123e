"""The `hwprune` command: the verbs, `--version`, and how every error leaves the program."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hwprune import __version__
from hwprune.cli import (
    bench,
    compare,
    devices,
    doctor,
    explain,
    export,
    finetune,
    fit,
    inspect,
    predict,
    profile,
    report,
    search,
)
from hwprune.cli._console import early_streams, print_any_letter
from hwprune.cli._verb import origin
from hwprune.core.errors import BudgetInfeasible, DeviceError, HwpruneError, Interrupted, UsageError, unknown_name
from hwprune.core.specs import temporary_folder, user_folder

VERBS = (search, compare, inspect, profile, fit, predict, finetune, export, bench, explain, report, devices, doctor)
# Every error of the parser: the base of the one subclass that typer exports.
PARSE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
INTERRUPTED = 130


class Verbs(TyperGroup):
    """The group of verbs: a wrong one is answered with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb to run; `UsageError` for one that does not exist."""
        if args and args[0] not in self.commands:
            raise unknown_name("verb", args[0], self.commands)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order in which a newcomer needs them."""
        return list(self.commands)


app = typer.Typer(
    cls=Verbs,
    name="hwprune",
    no_args_is_help=False,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Example:  hwprune search --latency 60%",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in VERBS:
    module.add_to(app)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"hwprune {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """The most accurate smaller network that measurably meets a latency budget on your device."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 yes, 1 no, 2 your input, 3 the device, 4 our bug, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_streams()
    print_any_letter()
    with _Errors(given) as errors:
        code = app(given, prog_name="hwprune", standalone_mode=False, obj=errors)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C; no verb ends so itself
            raise KeyboardInterrupt
        errors.code = code if isinstance(code, int) else 0
    return errors.code


def _by_ctrl_c(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or one that Ctrl-C caused: an import that it cuts off leaves half a module behind."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """While an interrupt is told, another one has nothing left to stop."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _open_streams() -> None:
    """Write nowhere where a caller has closed stdout or stderr; else the next file that is opened takes their place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  as long as the program lives


class _Errors:
    """Turns whatever leaves a verb into `error:` and `hint:` lines and an exit code. Nothing passes it.

    `streams` are a guess until a verb that knows its flags sets them.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.code = 0
        self._arguments = arguments
        self.streams = early_streams(arguments)
        self._verb = next((word for word in arguments if not word.startswith("-")), "error")

    def __enter__(self) -> _Errors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            return True
        if isinstance(error, typer.Abort) or _by_ctrl_c(error):
            with _deaf_to_ctrl_c():
                self._report(Interrupted("interrupted"))
        elif isinstance(error, typer.Exit):
            self.code = error.exit_code
        elif isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            _close_stdout()  # whoever read our output has seen enough; rich turns this into SystemExit
        elif isinstance(error, HwpruneError):
            self._report(error)
        elif isinstance(error, PARSE_ERROR):
            self._report(parser_error(error))
        elif isinstance(error, OSError):
            self._report(_os_error(error))
        elif isinstance(error, MemoryError):
            self._report(HwpruneError("out of memory", hint="use a smaller --batch or model"))
            self.code = 3
        elif isinstance(error, SystemExit):
            self.code = error.code if isinstance(error.code, int) else 1
        else:
            self._report_bug(error)
        return True

    def _report(self, error: HwpruneError) -> None:
        self.code = error.exit_code
        if self.streams.verbosity > 1:
            self.streams.talk("".join(traceback.format_exception(error)).rstrip())
        self.streams.error(error)
        if self.streams.as_json:
            document: dict[str, Any] = {"error": error.message, "hint": error.hint, "exit_code": self.code}
            if isinstance(error, BudgetInfeasible):
                # What is measured to be infeasible is a result; as an error it is what a method predicts.
                document = {"verdict": "infeasible", "predicted_smallest_ms": error.smallest_ms, **document}
            try:
                self.streams.document(f"hwprune.{self._verb}/1", document)
            except OSError:  # nobody takes our output, and the error itself stands on stderr
                _close_stdout()

    def _report_bug(self, error: BaseException) -> None:
        log = _write_bug(error, self._arguments)
        bug = HwpruneError(
            f"a bug in hwprune: {type(error).__name__}: {error}",
            hint=f"please report it with the file {log}",
        )
        bug.__cause__ = error
        self._report(bug)


def parser_error(error: Exception) -> UsageError:
    """What the parser did not like, in our words: `unknown flag '--latncy'. Did you mean '--latency'?`"""
    context = getattr(error, "ctx", None)
    help_command = f"`{context.command_path} --help` shows what it takes" if context is not None else ""
    flag = getattr(error, "option_name", None)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if flag and message.startswith("No such option"):
        known = [name for param in context.command.params for name in param.opts] if context is not None else []
        close = difflib.get_close_matches(flag, [name for name in known if name.startswith("--")], n=1, cutoff=0.5)
        meant = f" Did you mean '{close[0]}'?" if close else ""
        if context is not None and isinstance(context.command, TyperGroup):
            meant, help_command = "", "flags come after the verb: hwprune search --json"
        return UsageError(f"unknown flag '{flag}'.{meant}", hint=help_command)
    param = getattr(error, "param", None)
    if param is not None and context is not None:
        source = context.get_parameter_source(param.name)
        place = origin(context, param.name, source.name) if source is not None else "flag"
        if place not in ("flag", "default"):
            message = f"{place}: {message}"
    message = message.replace("Value error, ", "")
    if message[1:2].islower():  # a sentence, not a name in capitals
        message = message[0].lower() + message[1:]
    return UsageError(message.rstrip(".") or "wrong usage", hint=help_command)


def _os_error(error: OSError) -> HwpruneError:
    hint = "free some space" if error.errno == errno.ENOSPC else "check path and permissions"
    return DeviceError(f"{error.filename or 'the system'}: {error.strerror or error}", hint=hint)


def _write_bug(error: BaseException, arguments: list[str]) -> Path:
    """The traceback in a file of the user's state folder, or of the temporary one when that cannot be written."""
    folders = (user_folder("XDG_STATE_HOME", ".local/state") or temporary_folder(), Path(tempfile.gettempdir()))
    text = f"hwprune {' '.join(arguments)}\nPython {sys.version}\n\n{''.join(traceback.format_exception(error))}"
    name = f"bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return folder / name
    return Path(os.devnull)


def _close_stdout() -> None:
    """The reader of our pipe went away: let the interpreter's own flush at exit write nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
