"""Strategies with their settings in one text, such as `hybrid:fidelity=50`, to be set side by side."""

from __future__ import annotations

import json
import re
from typing import Any

from ..config import STRATEGIES, ParallelConfig, PublishedSettings, check_ranks, field_types
from ..errors import UsageError
from ..utils.names import require_known

NAMES = ("devices", "shards", "fidelity", "quality", "calibration", "step_kind", "tolerance", "full_steps")
"""Fields of ParallelConfig that decide the picture or its speed; those of PublishedSettings join them."""

_NEXT_STRATEGY = re.compile(r",(?=\s*[A-Za-z])")
"""A comma before a name: those before digits belong to a value, as in `full_steps=0-4,8,11`."""
_NEXT_SETTING = re.compile(r":(?=[\w.-]+=)")


def parse_strategies(text: str, devices: int | None = None) -> dict[str, ParallelConfig]:
    """Strategies side by side, by their texts: `serial,cfg,hybrid:fidelity=50`.

    Args:
        text: See `parse_strategy`; a comma before each further one.
        devices: Ranks of those that do not say; `serial` has one.

    Raises:
        UsageError: one is malformed, or there twice.
    """
    found: dict[str, ParallelConfig] = {}
    for part in map(str.strip, _NEXT_STRATEGY.split(text)):
        if part in found:
            raise UsageError(f"strategy {part!r} is there twice; name each once")
        found[part] = parse_strategy(part, devices)
    return found


def parse_strategy(text: str, devices: int | None = None) -> ParallelConfig:
    """The config that `NAME:SETTING=VALUE:...` means, with settings of ParallelConfig and PublishedSettings.

    Args:
        text: Such as `hybrid:fidelity=50` or `published:tau_cap=20`.
        devices: Ranks, unless it says; `serial` has one.

    Raises:
        UsageError: the strategy or a setting is unknown, or a value does not fit; names the text.
    """
    name, *settings = _NEXT_SETTING.split(text)
    try:
        require_known("strategy", name, STRATEGIES)
        values = dict(_setting(setting) for setting in settings)
        published = {name: values.pop(name) for name in field_types(PublishedSettings) if name in values}
        own = {"devices": 1 if name == "serial" else devices} | values
        config = ParallelConfig(strategy=name, published=PublishedSettings(**published), **own)
        if config.devices is not None:
            check_ranks(config, config.devices)
    except UsageError as error:
        raise UsageError(str(error) if text == name else f"{text}: {error}") from error
    return config


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    name = name.replace("-", "_").removeprefix("published.")
    types = {name: field_types(ParallelConfig)[name] for name in NAMES} | field_types(PublishedSettings)
    require_known("setting", name, types)
    if str in types[name] or object in types[name]:
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # the config says what it should be
