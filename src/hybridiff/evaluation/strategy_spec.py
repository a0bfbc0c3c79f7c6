"""Strategies with their settings in one text, such as `hybrid:fidelity=50@1`, to be set side by side."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

from ..config import ParallelConfig, PublishedSettings, check_ranks, require_strategy
from ..errors import UsageError
from ..strategies.offered import find_strategy
from ..utils.checked import check_limits, field_types
from ..utils.names import require_known

PUBLISHED = tuple(entry.name for entry in fields(PublishedSettings))
KEYS: dict[str, tuple[str, ...]] = {
    "serial": (),
    "cfg": ("shards", "displaced", "displaced_warm_up"),
    "hybrid": ("fidelity", "quality", "tolerance", "full_steps", "step_kind", "calibration", "shards"),
    "published": (*PUBLISHED, "calibration"),
}
"""The settings that can be given to each strategy: fields of `ParallelConfig` and `PublishedSettings`.

Those of a strategy that another package offers are its own.
"""

_NEXT_STRATEGY = re.compile(r",(?=\s*[^\d\s])")
"""A comma before a name: those before digits belong to a value, as in `full_steps=0-4,8,11`."""
_NEXT_SETTING = re.compile(r":(?=[\w.-]+=)")
"""A colon before a setting: a path has colons of its own."""

_DEVICES = re.compile(r"(.*?)(?:@(\d+))?", re.DOTALL)


def parse_strategies(text: str, devices: int) -> dict[str, ParallelConfig]:
    """Strategies side by side, by their texts: `serial,cfg,hybrid:fidelity=50,hybrid@1`.

    Args:
        text: See `parse_strategy`; a comma before each further one.
        devices: Most ranks, which those have that do not say; `serial` has one.

    Raises:
        UsageError: one is malformed, or there twice.
    """
    found: dict[str, ParallelConfig] = {}
    for part in map(str.strip, _NEXT_STRATEGY.split(text)):
        if part in found:
            raise UsageError(f"strategy {part!r} is there twice; name each once")
        found[part] = parse_strategy(part, devices)
    return found


def parse_strategy(text: str, devices: int) -> ParallelConfig:
    """The config that `NAME:KEY=VALUE:...@DEVICES` means.

    Args:
        text: Such as `hybrid:fidelity=50` or `published:tau_cap=20@4`.
        devices: Most ranks, which it has unless it says.

    Raises:
        UsageError: the strategy or a setting is unknown, or a value does not fit; names the text.
    """
    label, count = _DEVICES.fullmatch(text).groups()  # type: ignore[union-attr]  # anything matches
    first, *settings = _NEXT_SETTING.split(label)
    name, colon, rest = first.partition(":")
    try:
        require_strategy(name)
        if colon:
            raise UsageError(f"settings of a strategy look like {name}:KEY=VALUE, got {rest!r}")
        ranks = int(count) if count else 1 if name == "serial" else devices
        check_limits("devices", ranks, least=1, most=1 if name == "serial" else devices)
        values = dict(_setting(name, setting) for setting in settings)
        config = _config(name, ranks, values)
    except UsageError as error:
        raise UsageError(str(error) if text == name else f"{text}: {error}") from error
    return config


def check_config(config: ParallelConfig, ranks: int) -> None:
    """Refuse a number of ranks that a strategy cannot use, and settings of its own; raises UsageError."""
    check_ranks(config, ranks)
    find_strategy(config.strategy).check_ranks(config, ranks)


def _config(strategy: str, ranks: int, values: dict[str, Any]) -> ParallelConfig:
    if strategy in KEYS:
        published = {key: values.pop(key) for key in PUBLISHED if key in values}
        config = ParallelConfig(strategy, ranks, published=PublishedSettings(**published), **values)
    else:
        config = ParallelConfig(strategy, ranks, settings=values)
    check_config(config, ranks)
    return config


def _setting(strategy: str, text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    if strategy not in KEYS:
        return key.replace("-", "_"), _value(value)
    if not KEYS[strategy]:
        raise UsageError(f"strategy {strategy!r} takes no settings")
    key = key.replace("-", "_")
    require_known(f"setting of {strategy!r}", key, KEYS[strategy])
    kinds = (field_types(ParallelConfig) | field_types(PublishedSettings))[key]
    return key, value if str in kinds or object in kinds else _value(value)


def _value(text: str) -> Any:
    """JSON, or else text: the config says what it should be."""
    try:
        return json.loads(text)
    except ValueError:
        return text
