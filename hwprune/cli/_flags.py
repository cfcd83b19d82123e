"""The flags that several verbs share, and the ones that every verb has."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from hwprune.cli._config import FILE, PER_CALL, USER_FILE, Default, load_defaults
from hwprune.core.errors import UsageError
from hwprune.core.specs import config_folder
from hwprune.core.units import parse_count
from hwprune.devices.files import check_distinct, devices
from hwprune.search.settings import DEFAULTS, LEAST_SAMPLES, TrainPrecision

MODEL_HELP = "A reference network, torchvision:NAME, timm:NAME, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION."
DATA_HELP = "digits, cifar10:PATH, imagefolder:PATH, npz:PATH, denoising:PATH, FILE.py:FUNCTION, ..."


def _above_zero(value: float | None) -> float | None:
    """The parser's ranges include their ends."""
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value:g} is not in the range x>0.")
    return value


def check_device(names: str) -> None:
    """Devices, separated by commas, of which none may be the beginning of several; raises `UsageError`.

    A name that is simply unknown is left to whoever looks it up.
    """
    for name in filter(None, names.split(",")):
        check_distinct(name, devices())


def _count(value: str | None) -> str | None:
    """Refuse what is no count before anything is done."""
    if value is not None:
        parse_count(value)
    return value


def _share(value: float) -> float:
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{value:g} is not in the range 0<x<=1.")
    return value


TARGET, TRAINING, SPACE, EVERY = "Target", "Training", "Search space", "Every verb"

Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help=MODEL_HELP, envvar="HWPRUNE_MODEL", show_default=DEFAULTS.model),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or `last`.", envvar="HWPRUNE_RUN")]
Data = Annotated[str | None, typer.Option(metavar="DATA", help=DATA_HELP)]
DataToTrainOn = Annotated[
    str | None,
    typer.Option(metavar="DATA", help=DATA_HELP, show_default=f"{DEFAULTS.data}, for {DEFAULTS.model} alone"),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights of the dense network: a .safetensors state dict.")
]
Input = Annotated[str | None, typer.Option(metavar="SHAPE", help="Shape of the example input, as 1x3x224x224.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Name or alias of a device; `hwprune devices` lists them.",
        rich_help_panel=TARGET,
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        metavar="RUNTIME",
        help="Runtime, or with a precision `tensorrt:fp16`; the device's first in fp32 by default.",
        rich_help_panel=TARGET,
    ),
]
Threads = Annotated[int, typer.Option(metavar="N", min=1, help="Threads of the runtime.", rich_help_panel=TARGET)]
Batch = Annotated[int, typer.Option(metavar="N", min=1, help="Images per inference.", rich_help_panel=TARGET)]
Samples = Annotated[
    int,
    typer.Option(
        metavar="N", min=LEAST_SAMPLES, help="Networks to measure for the latency table.", rich_help_panel=TARGET
    ),
]
MinKeep = Annotated[
    float,
    typer.Option(
        metavar="SHARE [0<x<=1]", callback=_share, help="Least share of a group that stays.", rich_help_panel=SPACE
    ),
]
Tile = Annotated[
    str,
    typer.Option(metavar="N", help="Step of the widths in channels; auto: found by a probe.", rich_help_panel=SPACE),
]
Depth = Annotated[
    bool,
    typer.Option("--depth", help="Let whole residual branches go, too.", rich_help_panel=SPACE),
]
Protect = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LAYER",
        help="Keep all channels of a layer, of the layers inside a module, or of a pattern (layer*.0); repeatable.",
        rich_help_panel=SPACE,
    ),
]
MaxParams = Annotated[
    str | None, typer.Option(metavar="COUNT", callback=_count, help="Most parameters of the network, as 2M or 500k.")
]
MaxMacs = Annotated[
    str | None,
    typer.Option(metavar="COUNT", callback=_count, help="Most MACs of the network for a batch, as 100M."),
]
Tables = Annotated[Path, typer.Option(metavar="FOLDER", help="Latency tables.", rich_help_panel=TARGET)]


# Where a flag is not called what its value is.
VARIABLES = {"options": "HWPRUNE_SET", "source": "HWPRUNE_FROM"}


class Color(str, Enum):
    """When to colour the output."""

    auto = "auto"
    always = "always"
    never = "never"


@dataclass(frozen=True)
class Common:
    """The flags of every verb."""

    run_dir: Path | None
    seed: int
    json: bool
    verbose: int
    quiet: bool
    color: Color
    config: Path | None
    print_config: bool

    @property
    def verbosity(self) -> int:
        """-1 for `-q`, else the number of `-v`."""
        return -1 if self.quiet else self.verbose


def _load_config(ctx: typer.Context, value: Path | None) -> Path | None:
    """Put the file's values below flags and environment; runs before the other flags are looked at."""
    if value is not None and not value.is_file():
        raise UsageError(f"no configuration file {value}", hint="--config names a TOML file")
    if ctx.parent is None:
        return value
    commands: dict[str, Any] = ctx.parent.command.commands  # type: ignore[attr-defined]  # a typer group
    flags = {
        name: [param.name for param in command.params if param.name not in PER_CALL]
        for name, command in commands.items()
    }
    paths = [path for path in (config_folder() / USER_FILE, value or Path(FILE)) if path.is_file()]
    found, of_a_run = load_defaults(paths, str(ctx.info_name), flags)
    params: dict[str, Any] = {str(param.name): param for param in ctx.command.params}
    ctx.default_map = {name: _of_the_flag(params[name], default) for name, default in found.items()}
    ctx.meta.update({f"hwprune.config.{name}": default.file for name, default in found.items()})
    ctx.meta["hwprune.of_a_run"] = of_a_run
    return value


def _of_the_flag(param: Any, default: Default) -> Any:
    """A file's value for a flag; one alone is a list of one. Raises `UsageError` for a switch's value elsewhere."""
    if isinstance(default.value, bool) and not param.is_flag:
        text = f"{default.file}: '{param.name}' is {str(default.value).lower()}; it takes a value"
        raise UsageError(text, hint=f"{param.opts[-1]} {param.metavar or 'VALUE'} is what it says on the command line")
    if getattr(param, "multiple", False) and not isinstance(default.value, list):
        return [default.value]
    return default.value


def _common(kind: Any, *names: str, **settings: Any) -> Any:
    return Annotated[kind, typer.Option(*names, rich_help_panel=EVERY, show_envvar=False, **settings)]


_CONFIG_HELP = (
    f"Defaults of the flags [./{FILE}, below it ~/.config/hwprune/{USER_FILE}]."
    " HWPRUNE_FLAG in the environment overrides them, a flag overrides both."
)
COMMON_FLAGS: tuple[Flag, ...] = (
    ("run_dir", _common(Path | None, metavar="FOLDER", help="Run folder to write or to read."), None),
    ("seed", _common(int, metavar="N", help="Seed of everything random."), 0),
    ("json", _common(bool, "--json", help="One JSON document on stdout."), False),
    (
        "verbose",
        _common(int, "-v", count=True, metavar=" ", show_default=False, help="Say more; -vv: tracebacks too."),
        0,
    ),
    ("quiet", _common(bool, "-q", help="Warnings and errors only."), False),
    ("color", _common(Color, metavar="WHEN", help="Colours in the output: auto, always or never."), Color.auto),
    (
        "config",
        _common(Path | None, metavar="FILE", help=_CONFIG_HELP, is_eager=True, callback=_load_config),
        None,
    ),
    (
        "print_config",
        _common(bool, "--print-config", help="Print where each flag's value comes from, and stop."),
        False,
    ),
)


Flag = tuple[str, Any, Any]  # name, annotation, default


def epochs_flag(of_what: str, *, none: bool = False, **settings: Any) -> Any:
    """A flag for a number of epochs of some training; `none`: 0 is one, too."""
    help_text = f"Epochs of {of_what}."
    return training_flag(help_text, "N", min=0, **settings) if none else positive_flag(help_text, "N")


def positive_flag(help_text: str, metavar: str) -> Any:
    """A flag in the panel about training for a number above 0."""
    return training_flag(help_text, f"{metavar} [x>0]", callback=_above_zero)


def training_flag(help_text: str, metavar: str, **settings: Any) -> Any:
    """A flag in the panel about training; `settings` are those of `typer.Option`."""
    return typer.Option(metavar=metavar, help=help_text, rich_help_panel=TRAINING, **settings)


TARGET_FLAGS: tuple[Flag, ...] = (
    ("device", Device, "cpu"),
    ("runtime", Runtime, None),
    ("threads", Threads, 1),
    ("batch", Batch, 1),
)
TABLE_FLAGS: tuple[Flag, ...] = (*TARGET_FLAGS, ("tables", Tables, Path("latency_tables")))
SPACE_FLAGS: tuple[Flag, ...] = (
    *TABLE_FLAGS,
    ("samples", Samples, DEFAULTS.samples),
    ("min_keep", MinKeep, DEFAULTS.min_keep),
    ("tile", Tile, "auto"),
    ("depth", Depth, DEFAULTS.depth),
    ("protect", Protect, None),
)


LIMIT_FLAGS: tuple[Flag, ...] = (("max_params", MaxParams, None), ("max_macs", MaxMacs, None))

TRAINING_FLAGS: tuple[Flag, ...] = (
    ("weights", Weights, None),
    (
        "dense_epochs",
        Annotated[float, epochs_flag("the dense network, without --weights; 0: it is taken as it is", none=True)],
        DEFAULTS.dense_epochs,
    ),
    ("epochs", Annotated[float, epochs_flag("a search that trains")], DEFAULTS.epochs),
    ("lr", Annotated[float, positive_flag("Learning rate of search and finetuning.", "RATE")], DEFAULTS.lr),
    ("batch_size", Annotated[int, training_flag("Images a training step.", "N", min=2)], DEFAULTS.batch_size),
    (
        "train_precision",
        Annotated[TrainPrecision, training_flag("What training computes in: fp32, bf16 or auto.", "NAME")],
        DEFAULTS.train_precision,
    ),
)


def parameters(flags: tuple[Flag, ...]) -> list[inspect.Parameter]:
    """Flags as parameters for a function's signature."""
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, annotation, default in flags
    ]
