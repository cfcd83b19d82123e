"""`hwprune search --method NAME --help`: the general help, then the method's own options out of its dataclass."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

import typer

from hwprune.cli._verb import VerbCommand
from hwprune.core import plugins
from hwprune.core.errors import unknown_name

METHODS = "hwprune.methods"


class MethodHelp(VerbCommand):
    """A command whose help goes on with the options of the method that was named beside `--help`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember the method before `--help` ends the parsing."""
        ctx.meta["hwprune.method"] = named_method(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help of the verb and, where a method was named, that method's options."""
        super().format_help(ctx, formatter)
        method = ctx.meta.get("hwprune.method")
        if method:
            typer.echo(method_help(method))
        else:
            text = f"Methods: {', '.join(plugins.names(METHODS))}; --method NAME --help shows the options of one."
            columns = shutil.get_terminal_size().columns
            typer.echo(textwrap.fill(text, columns, initial_indent=" ", subsequent_indent=" "))


def named_method(args: Sequence[str]) -> str:
    """The value of `--method` in a command line, or the empty string."""
    for position, word in enumerate(args):
        if word.startswith("--method="):
            return word.partition("=")[2]
        if word == "--method" and position + 1 < len(args):
            return args[position + 1]
    return ""


def check_method(name: str) -> None:
    """Raise `UsageError` for a method that does not exist, before anything slow is imported."""
    known = plugins.names(METHODS)
    if name not in known:
        raise unknown_name("method", name, known)


def method_help(name: str) -> str:
    """The method's summary and one line an option: name, type, default, meaning."""
    from hwprune import methods

    method = methods.load(name)
    summary = (method.__doc__ or "").strip().splitlines()[0]
    rows = [
        (f"--set {field.name}=", _type_name(field.type), _default(field), str(field.metadata.get("help", "")))
        for field in dataclasses.fields(method)  # type: ignore[arg-type]  # every plugin is a dataclass
        if field.init
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        f"   {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
    ]
    return "\n".join([f" Options of --method {name}: {summary}", *(lines or ["   none"])])


def _type_name(hint: Any) -> str:
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return str(field.default)
    return str(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "required"
