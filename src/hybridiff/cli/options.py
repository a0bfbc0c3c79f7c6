"""Options that commands share, and what is given as NAME=VALUE or in a file."""

# Annotations are evaluated at once here and wherever commands are: typer reads them off the class that inherits them.
import json
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..arguments import MOST_PIXELS, MOST_STEPS
from ..config import STRATEGIES, ParallelConfig, PublishedSettings
from ..distributed.placement import DEVICES
from ..errors import UsageError
from ..models.bench import BENCH
from ..models.compiling import COMPILES
from ..models.loading import DTYPES
from ..models.schedulers import SCHEDULERS
from ..models.tiny import EMBEDDED
from ..utils.checked import check_limits, field_types
from ..utils.names import require_known
from .flags import choice, dashes, flag, number

WHAT, HOW, WHERE = "What", "How to denoise (default: as the model does)", "On what"
PROMPTS = "one prompt per line, as text or as JSON with prompt, seed and negative_prompt, or a JSON list of these"
MODEL = f"{', '.join((*EMBEDDED, *BENCH[:2]))}, a local folder, a hub id, or a .safetensors file"
MODEL_CONFIG = "configuration of a .safetensors file: a folder or a hub id (default: told by what the file holds)"
COMPILE = "the denoiser under torch.compile: none, blocks (each that it repeats) or whole; the first image takes longer"
ARG = "any further argument of the pipeline, such as guidance_rescale=0.7; repeatable"

HELP: dict[str, str] = {entry.name: entry.metadata["help"] for entry in fields(ParallelConfig)}
PUBLISHED: dict[str, str] = {"published." + entry.name: entry.metadata["help"] for entry in fields(PublishedSettings)}
FLAGS = ("strategy", "devices", "shards", "fidelity", "quality", "calibration", "timeout", "trace")
"""Fields of ParallelConfig that have flags of their own."""
SETTINGS = {name: text for name, text in HELP.items() if name not in (*FLAGS, "published", "settings")} | PUBLISHED
"""The names that `--set` takes, with their help texts."""
OWN = "settings."
"""Before the names of settings that a strategy of another package has."""

Device = Annotated[str, choice(WHERE, "auto, cuda or cpu", DEVICES)]
Dtype = Annotated[str | None, choice(WHERE, f"{', '.join(DTYPES)} (default: float32 on CPU, half on CUDA)", DTYPES)]
Compile = Annotated[str, choice(WHERE, COMPILE, COMPILES)]
Pixels = Annotated[int | None, number(WHAT, "of an image", "PIXELS", least=1, most=MOST_PIXELS)]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, the size of its images, and where it runs."""

    model: Annotated[str, flag(WHAT, MODEL, "MODEL", names=(*EMBEDDED, *BENCH))]
    height: Pixels = None
    width: Pixels = None
    device: Device = "auto"
    dtype: Dtype = None
    variant: Annotated[str | None, flag(WHERE, "weight files to take, such as fp16", "NAME")] = None
    model_config: Annotated[str | None, flag(WHERE, MODEL_CONFIG, "PATH_OR_ID")] = None

    def given(self, *names: str) -> dict[str, Any]:
        """Those of some options that were given, by name."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class CallOptions(ModelOptions):
    """How the pipeline is called."""

    negative_prompt: Annotated[str | None, flag(WHAT, "what images should not show", "TEXT")] = None
    num_inference_steps: Annotated[int | None, number(HOW, "denoising steps", least=1, most=MOST_STEPS)] = None
    guidance_scale: Annotated[float | None, number(HOW, "strength of the guidance", "X", least=0, most=1e6)] = None
    scheduler: Annotated[str | None, choice(HOW, ", ".join(SCHEDULERS), tuple(SCHEDULERS))] = None
    arg: Annotated[list[str] | None, flag(HOW, ARG, "NAME=VALUE")] = None

    def call_arguments(self, table: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The arguments of the pipeline's call, less prompt and seed; `--arg` beats the table of a config file.

        Raises:
            UsageError: an argument has a flag of its own, or is no finite number.
        """
        further = {**(table or {}), **{name: _value(text) for name, text in _pairs("--arg", self.arg)}}
        flags = {entry.name: entry.name for entry in fields(self)}
        flags["num_images_per_prompt"] = "images_per_prompt" if "images_per_prompt" in flags else "num_images"
        for name, value in further.items():
            if name in flags:
                raise UsageError(f"--arg {name} has a flag of its own: use --{dashes(flags[name])}")
            if isinstance(value, float):
                check_limits(f"--arg {name}", value)
        own = self.given("height", "width", "negative_prompt", "num_inference_steps", "guidance_scale")
        return own | further


def command_line() -> str:
    """The command that runs, as a shell takes it; files and pages tell by what they were made."""
    return shlex.join(["hybridiff", *sys.argv[1:]])


def read_settings(texts: list[str] | None, table: dict[str, Any], strategy: str | None = None) -> dict[str, Any]:
    """Settings by the names in SETTINGS, whose prefix may be left out; `--set` beats the table of a config file.

    Args:
        texts: What was given as NAME=VALUE.
        table: That of a config file.
        strategy: Whose settings they are; any other name is one of its own where it is not built in.

    Raises:
        UsageError: a name is unknown.
    """
    types = {**field_types(ParallelConfig), **field_types(PublishedSettings)}
    is_open = strategy not in (None, *STRATEGIES)
    if isinstance(nested := table.get("published"), dict):  # published.tau_cap = 20 in TOML
        table = {name: value for name, value in table.items() if name != "published"} | nested
    settings = {_full_name(name, is_open): value for name, value in table.items()}
    for name, text in _pairs("--set", texts):
        full = _full_name(name, is_open)
        settings[full] = text if str in types.get(full.removeprefix("published."), ()) else _value(text)
    return settings


@dataclass(frozen=True)
class ConfigFile:
    """What a file says: its options, and its tables `set` and `arg`."""

    path: str
    entries: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)


def apply_config(ctx: typer.Context, config: ConfigFile | None) -> ConfigFile | None:
    """Make what a file says the defaults of the flags.

    Raises:
        UsageError: the file cannot be read, or an option in it is unknown or refused; names the file.
    """
    if config is None:
        return None
    flags = {str(parameter.name): parameter for parameter in ctx.command.params}
    try:
        for name, value in _read(Path(config.path).expanduser()).items():
            require_known("option", name, [flag for flag in flags if flag != "config"])
            if name in ("set", "arg") and isinstance(value, dict):
                config.tables[name] = {inner.replace("-", "_"): entry for inner, entry in value.items()}
            elif isinstance(value, (str, int, float)):  # as text, as on the command line
                config.entries[name] = value if isinstance(value, bool) else str(value)
                flags[name].process_value(ctx, config.entries[name])
            else:
                raise UsageError(f"{name} cannot be {value!r}")
    except (UsageError, typer.TyperException) as error:
        text = error.format_message() if isinstance(error, typer.TyperException) else error
        raise UsageError(f"{config.path}: {text}") from error
    # A flag for many prompts takes the place of the file's one: these two are no defaults.
    ctx.default_map = {name: value for name, value in config.entries.items() if name not in ("prompt", "prompts")}
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read it: {error.strerror}") from error
    except ValueError as error:  # of both parsers, and of the decoder
        raise UsageError(f"malformed: {error}") from error
    if not isinstance(content, dict):
        raise UsageError("must hold one table of options")
    return {name.replace("-", "_"): value for name, value in content.items()}


def _full_name(name: str, is_open: bool) -> str:
    full = f"published.{name}" if f"published.{name}" in SETTINGS else name
    if is_open and full not in SETTINGS:
        return OWN + name.removeprefix(OWN)
    require_known("setting", full, SETTINGS)
    return full


def _pairs(flag: str, texts: list[str] | None) -> Iterator[tuple[str, str]]:
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"{flag} takes NAME=VALUE, got {text!r}")
        yield name.replace("-", "_"), value


def _value(text: str) -> Any:
    """JSON, or else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
