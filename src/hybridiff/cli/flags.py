"""Flags: a command is a dataclass of its options, each field of it a flag, with a method `run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

from ..config import ParallelConfig
from ..utils.checked import check_limits
from ..utils.names import require_known


def flag(
    panel: str,
    text: str,
    metavar: str,
    *declared: str,
    check: Callable[[str, Any], None] | None = None,
    names: Sequence[str] = (),
    **more: Any,
) -> Any:
    """A flag.

    Args:
        panel: Where the help shows it.
        text: What the help says.
        metavar: What its value is called; empty for switches.
        declared: How it is written, where not like its field.
        check: Takes the flag and its value; raises UsageError.
        names: What the shell completes.
        more: Further arguments of `typer.Option`.
    """

    def checked(param: typer.CallbackParam, value: Any) -> Any:
        if check is not None and value is not None:
            check(param.opts[0], value)
        return value

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    more = {"callback": checked, "autocompletion": complete if names else None} | more
    return typer.Option(*declared, metavar=metavar, help=text, rich_help_panel=panel, **more)


def choice(panel: str, text: str, names: Sequence[str]) -> Any:
    """A flag whose value is one of some names."""
    return flag(panel, text, "NAME", check=lambda name, value: require_known(name[2:], value, names), names=names)


def number(panel: str, text: str, metavar: str = "N", **limits: float) -> Any:
    """A flag whose value is a number within limits; see `config.check_limits`."""
    return flag(panel, text, metavar, check=lambda name, value: check_limits(name, value, **limits))


def setting(panel: str, name: str, metavar: str) -> Any:
    """A flag for a number in ParallelConfig, with the limits of the field."""
    metadata = dict(ParallelConfig.__dataclass_fields__[name].metadata)
    return number(panel, metadata.pop("help"), metavar, **metadata)


def dashes(name: str) -> str:
    """A flag's name as it is declared; people write `_` for `-`."""
    return name.replace("_", "-")
