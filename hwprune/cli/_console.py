"""The two streams of the command line: results to stdout, talk (progress, warnings, hints) to stderr."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hwprune.core.errors import HwpruneError
from hwprune.core.files import finite

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES = (
    (r"^(error):", "bold red"),
    (r"^(warning):", "yellow"),
    (r"^(hint|next|note):", "cyan"),
    (r"\b(SIMULATED)\b", "bold magenta"),
    (r"(?<![\w.-])(pass|PASS)(?![\w.-])", "green"),
    (r"(?<![\w.-])(miss|MISS|FAIL|fail|infeasible|INFEASIBLE|over budget)(?![\w.-])", "red"),
    (r"(?<![\w.-])(warn)(?![\w.-])", "yellow"),
    (r"^([A-Z][A-Z0-9 %./()<>+-]{8,})$", "bold"),
)


@dataclass(frozen=True)
class Outcome:
    """What a verb hands back: the text for people, the document for `--json`, the exit code, what to type next."""

    text: str
    document: Mapping[str, Any]
    code: int = 0
    next: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Streams:
    """How to talk: `color` is auto, always or never; `verbosity` is -1 for `-q`, 1 for `-v`, 2 for `-vv`."""

    as_json: bool = False
    verbosity: int = 0
    color: str = "auto"

    def console(self, *, stderr: bool) -> Console:
        """A rich console on one of the two streams; colours off for pipes, `NO_COLOR` and `TERM=dumb`."""
        from rich.console import Console

        never = self.color == "never" or (
            self.color == "auto" and ("NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb")
        )
        return Console(
            file=sys.stderr if stderr else sys.stdout,
            force_terminal=True if self.color == "always" else None,
            no_color=never,
            color_system=None if never else "auto",
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )

    def result(self, schema: str, outcome: Outcome) -> None:
        """Print the outcome: one JSON document, or the text and then the next commands on stderr."""
        if self.as_json:
            self.document(schema, outcome.document)
            return
        self.console(stderr=False).print(styled(outcome.text))
        if self.verbosity >= 0:
            for command in outcome.next:
                self.talk(f"next: {command}")

    def document(self, schema: str, document: Mapping[str, Any]) -> None:
        """Print one JSON document on stdout, `schema` first, NaN and infinities as null."""
        body = {"schema": schema, **{key: value for key, value in document.items() if key != "schema"}}
        unicode = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"
        sys.stdout.write(json.dumps(finite(body), indent=2, allow_nan=False, ensure_ascii=not unicode) + "\n")
        sys.stdout.flush()

    def talk(self, text: str) -> None:
        """A line on stderr."""
        self.console(stderr=True).print(styled(text))

    def error(self, error: HwpruneError) -> None:
        """`error:` with the offending value, then `hint:` with what to do."""
        self.talk(f"error: {error.message}")
        if error.hint:
            self.talk(f"hint: {error.hint}")


def early_streams(arguments: Sequence[str]) -> Streams:
    """How to talk before a command line is understood: what is right in flags and environment counts."""
    as_json = os.environ.get("HWPRUNE_JSON", "").strip().lower() in ("1", "true", "t", "yes", "y", "on")
    color = os.environ.get("HWPRUNE_COLOR", "")
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if word.partition("=")[0] == "--color":
            color = word.partition("=")[2] or following
    verbosity = sum(len(word) - 1 for word in arguments if re.fullmatch("-v+", word))
    return Streams(as_json or "--json" in arguments, verbosity, color if color in ("always", "never") else "auto")


def print_any_letter() -> None:
    """Let stdout and stderr write `?` for what their encoding lacks: a result must not be lost for a letter."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def styled(text: str) -> Text:
    """The text with the words that carry the verdict in colour."""
    from rich.text import Text

    result = Text(text)
    for pattern, style in STYLES:
        for match in re.finditer(pattern, text, re.MULTILINE):
            result.stylize(style, *match.span(1))
    return result
