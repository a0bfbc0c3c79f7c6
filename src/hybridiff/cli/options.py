"""The command line's options: parsed, merged with a config file, checked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..config import BETWEEN, STRATEGIES, ParallelConfig
from ..models.loading import DTYPES
from ..models.schedulers import SCHEDULERS
from ..models.tiny import EMBEDDED

CALL_OPTIONS = (
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "height",
    "width",
    "max_sequence_length",
)
"""Options that go to the pipeline under their own name, where given."""

_OWN_OPTIONS = ("strategy", "devices", "simulate", "outputs", "timeout", "trace")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ValueErrors, and that takes `_` for `-` in the names of options."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(None if args is None else [_dashes(arg) for arg in args], namespace)


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hybridiff generate`."""
    what = parser.add_argument_group("what to draw")
    what.add_argument("--model", metavar="MODEL", help=f"{', '.join(EMBEDDED)}, a local folder, or a hub id")
    what.add_argument("--prompt", metavar="TEXT")
    what.add_argument("--negative-prompt", metavar="TEXT")
    what.add_argument(
        "--prompts",
        metavar="FILE",
        help="many prompts: a line each, plain or JSON with prompt, seed and negative_prompt",
    )
    what.add_argument("--num-images", type=_whole(1), default=1, metavar="N", help="pictures a prompt (default 1)")
    what.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the noise (default 0)")
    what.add_argument("--height", type=_whole(1), metavar="PIXELS")
    what.add_argument("--width", type=_whole(1), metavar="PIXELS")
    what.add_argument("--output", default="out/picture.png", metavar="PATH", help="(default out/picture.png)")
    what.add_argument(
        "--trace",
        metavar="FILE",
        help="also write what each rank did when, for ui.perfetto.dev or chrome://tracing (.json); slows the run down",
    )

    how = parser.add_argument_group("how to denoise; the model's own defaults where not given")
    how.add_argument("--num-inference-steps", type=_whole(1), metavar="N")
    how.add_argument("--guidance-scale", type=float, metavar="X")
    how.add_argument("--guidance-rescale", type=float, metavar="X", help="SDXL only")
    how.add_argument("--max-sequence-length", type=_whole(1), metavar="N", help="text tokens, SD3 only")
    how.add_argument("--scheduler", choices=tuple(SCHEDULERS), metavar="NAME", help=", ".join(SCHEDULERS))

    where = parser.add_argument_group("on what")
    where.add_argument("--devices", type=_whole(1), metavar="N", help="number of ranks (default 2)")
    where.add_argument(
        "--strategy",
        choices=STRATEGIES,
        metavar="NAME",
        help=f"{', '.join(STRATEGIES)} (default hybrid where any setting of strategies is given, see below, else cfg; "
        "serial with --devices 1)",
    )
    where.add_argument("--simulate", action="store_true", help="play all ranks in one process: same picture, no gain")
    add_machine_options(where, device="auto")
    where.add_argument("--variant", metavar="NAME", help="weight files to take, such as fp16")
    where.add_argument("--config", metavar="FILE", help="these options from a JSON or TOML file; flags beat it")

    _add_strategy_options(parser.add_argument_group("settings of strategies, see ParallelConfig"))


def add_inspect_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hybridiff inspect`."""
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help=f"{', '.join(EMBEDDED)}, a local folder, or a hub id"
    )
    parser.add_argument("--height", type=_whole(1), metavar="PIXELS")
    parser.add_argument("--width", type=_whole(1), metavar="PIXELS")
    parser.add_argument("--all", action="store_true", help="list every legal cut, not only the chosen ones")
    _add_one_device_options(parser)


def add_simulate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hybridiff simulate`."""
    what = parser.add_argument_group("what to compare")
    _add_model_options(what)
    what.add_argument("--limit", type=_whole(1), metavar="N", help="take the first prompts only")
    what.add_argument(
        "--families", metavar="A,B", help="families of settings (default all; none where --settings is given)"
    )
    what.add_argument(
        "--settings", metavar="FILE", help="more settings: a JSON list of objects with family, label, config, steps"
    )
    what.add_argument("--calibration", metavar="FILE", help="thresholds that hybridiff calibrate wrote")
    what.add_argument(
        "--calibration-prompts",
        metavar="FILE",
        help="prompts that typical schedules are taken from, none of --prompts; the embedded models bring theirs",
    )
    what.add_argument("--output", default="out/frontier.json", metavar="FILE", help="(default out/frontier.json)")
    what.add_argument("--fresh", action="store_true", help="start over where the output is there already")
    what.add_argument(
        "--batch",
        type=_whole(1),
        default=1,
        metavar="N",
        help="prompts drawn at once where the schedule does not depend on them (default 1)",
    )
    _add_call_options(parser.add_argument_group("how to denoise; the model's own defaults where not given"))
    _add_one_device_options(parser.add_argument_group("on what"))


def add_calibrate_options(parser: argparse.ArgumentParser) -> None:
    """The options of `hybridiff calibrate`."""
    what = parser.add_argument_group("what to measure")
    _add_model_options(what)
    what.add_argument(
        "--between",
        default="skipped,reuse",
        metavar="A,B",
        help=f"what the steps between full ones may be, of {', '.join(BETWEEN)}; the fastest is chosen for each "
        "quality (default skipped,reuse)",
    )
    what.add_argument(
        "--output",
        default="calibration.json",
        metavar="FILE",
        help="what it holds for other schedulers and numbers of steps is kept (default calibration.json)",
    )
    _add_call_options(parser.add_argument_group("how to denoise; the model's own defaults where not given"))
    _add_one_device_options(parser.add_argument_group("on what"))


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--model", required=True, metavar="MODEL", help=f"{', '.join(EMBEDDED)}, a local folder, or a hub id"
    )
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt a line, plain or JSON with prompt, seed and negative_prompt; the embedded models bring theirs",
    )


def _add_call_options(group: Any) -> None:
    group.add_argument("--num-inference-steps", type=_whole(1), metavar="N")
    group.add_argument("--guidance-scale", type=float, metavar="X")
    group.add_argument("--guidance-rescale", type=float, metavar="X", help="SDXL only")
    group.add_argument("--max-sequence-length", type=_whole(1), metavar="N", help="text tokens, SD3 only")
    group.add_argument("--scheduler", choices=tuple(SCHEDULERS), metavar="NAME", help=", ".join(SCHEDULERS))
    group.add_argument("--negative-prompt", metavar="TEXT")
    group.add_argument("--height", type=_whole(1), metavar="PIXELS")
    group.add_argument("--width", type=_whole(1), metavar="PIXELS")


def _add_one_device_options(group: Any) -> None:
    group.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="(default auto)")
    group.add_argument("--dtype", choices=DTYPES, help="(default float32 on CPU, a half type on CUDA)")
    group.add_argument("--variant", metavar="NAME", help="weight files to take, such as fp16")
    group.add_argument("--traceback", action="store_true", help="show where an error came from")


def add_machine_options(parser: Any, device: str) -> None:
    """The options that all commands share."""
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default=device, help=f"(default {device})")
    parser.add_argument("--dtype", choices=DTYPES, help="(default float32 on CPU, a half type on CUDA)")
    parser.add_argument(
        "--timeout", type=_seconds, default=300.0, metavar="SECONDS", help="deadline of every wait (default 300)"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def parse_options(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; what a file given by `--config` says stands behind explicit flags.

    Raises:
        ValueError: an option is unknown or its value bad; names the file where it stands in one.
    """
    explicit = parser.parse_args(arguments)
    path = getattr(explicit, "config", None)
    if path is None:
        return explicit
    entries = _read_config(Path(path))
    for given, other in (("prompts", "prompt"), ("prompt", "prompts")):
        if getattr(explicit, given) is not None:
            entries.pop(other, None)
    command, flags = arguments[0], arguments[1:]
    from_file = [_flag(name, value) for name, value in entries.items() if value is not False]
    try:
        parser.parse_args([command, *from_file])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return parser.parse_args([command, *from_file, *flags])


def parallel_config(options: argparse.Namespace) -> ParallelConfig:
    """What the options say about the ranks."""
    from ..launch.engine import is_under_torchrun

    devices = options.devices
    if devices is None and not is_under_torchrun():
        devices = 1 if options.strategy == "serial" else 2
    strategy = options.strategy or _implied_strategy(options, devices)
    return ParallelConfig(
        strategy=strategy,
        devices=devices,
        simulate=options.simulate,
        timeout=options.timeout,
        trace=options.trace is not None,
        **_given_settings(options),
    )


def _implied_strategy(options: argparse.Namespace, devices: int | None) -> str:
    """Who gives a setting means the strategy that has them all; `serial` and `cfg` have none."""
    if _given_settings(options):
        return "hybrid"
    return "serial" if devices == 1 else "cfg"


def _given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of strategies that were given, also where they are the default."""
    settings = {name: getattr(options, name) for name in _strategy_settings()}
    return {name: value for name, value in settings.items() if value is not None}


def call_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's arguments that the options give, less the prompt."""
    given = {name: getattr(options, name) for name in CALL_OPTIONS}
    arguments = {name: value for name, value in given.items() if value is not None}
    if getattr(options, "num_images", 1) > 1:
        arguments["num_images_per_prompt"] = options.num_images
    return arguments


def _add_strategy_options(group: Any) -> None:
    """One option for every further field of ParallelConfig, so that the command line cannot fall behind it."""
    help_texts = _field_texts(ParallelConfig)
    for name, kind in _strategy_settings().items():
        flag = "--" + name.replace("_", "-")
        default = getattr(ParallelConfig, name)
        text = help_texts.get(name, "") + ("" if default is None else f" (default {default})")
        # None in the parser, whatever the default: what was given decides which strategy is meant.
        if kind is bool:
            group.add_argument(flag, action="store_true", default=None, help=text)
        else:
            group.add_argument(flag, type=kind, metavar="X", help=text)


def _strategy_settings() -> dict[str, type]:
    """The fields of ParallelConfig that have no option of their own, with the type that each takes."""
    kinds = typing.get_type_hints(ParallelConfig)
    return {
        field.name: next(iter(typing.get_args(kinds[field.name])), kinds[field.name])
        for field in dataclasses.fields(ParallelConfig)
        if field.name not in _OWN_OPTIONS
    }


def _field_texts(documented: type) -> dict[str, str]:
    """What a class's docstring says of each of its arguments, ready for argparse."""
    arguments = (documented.__doc__ or "").partition("Args:")[2].partition("Raises:")[0]
    entries = re.findall(r"^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z)", arguments, re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "").replace("%", "%%").rstrip(".") for name, text in entries}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        entries = _parse_toml(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        raise ValueError(f"cannot read the config file {path}: {error.strerror}") from error
    except ValueError as error:  # of both parsers, and of the decoder
        raise ValueError(f"the config file {path} is malformed: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"the config file {path} must hold one table of options")
    for name, value in entries.items():
        if name in ("config", "help") or not isinstance(value, (str, int, float)):
            raise ValueError(f"{path}: {name} = {value!r} is not an option with a single value")
    return {name.replace("-", "_"): value for name, value in entries.items()}


def _parse_toml(text: str) -> Any:
    try:
        import tomllib
    except ModuleNotFoundError as error:
        raise ValueError("TOML needs Python 3.11 or newer; use JSON") from error
    return tomllib.loads(text)


def _flag(name: str, value: Any) -> str:
    return f"--{name}" if value is True else f"--{name}={value}"


def _dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _whole(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}, got {text!r}")
        return value

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value
