"""Strategies to be compared, as one text names them: `serial,cfg,hybrid:fidelity=50,hybrid@1`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from ..config import (
    STRATEGIES,
    ParallelConfig,
    PublishedSettings,
    check_limits,
    check_ranks,
    field_types,
    quality_value,
)
from ..errors import UsageError
from ..utils.names import require_known

PUBLISHED = tuple(entry.name for entry in fields(PublishedSettings))
KEYS: dict[str, tuple[str, ...]] = {
    "serial": (),
    "cfg": ("shards",),
    "hybrid": ("fidelity", "quality", "tolerance", "full_steps", "step_kind", "calibration", "shards"),
    "published": (*PUBLISHED, "calibration"),
}
"""The settings that can be given to each strategy: fields of `ParallelConfig` and `PublishedSettings`."""
EXACT = ("serial", "cfg")
"""Strategies that save no work; of the others what they save is told apart by a run on one device."""


@dataclass(frozen=True)
class Contender:
    """A strategy with its settings on a number of ranks.

    Attributes:
        label: As the user wrote it, less the number of ranks.
        devices: Number of ranks.
        config: How they work together.
    """

    label: str
    devices: int
    config: ParallelConfig

    @property
    def name(self) -> str:
        """What it is called in a table."""
        return f"{self.label} on {self.devices}"

    @property
    def is_exact(self) -> bool:
        """Whether every evaluation is made at every step."""
        config = self.config
        return config.strategy in EXACT or (config.quality is not None and quality_value(config.quality) == 1.0)


SERIAL = Contender("serial", 1, ParallelConfig("serial"))


def parse_contenders(text: str, devices: int) -> list[Contender]:
    """What a text names, after serial on one device: each on all devices, and what approximates on one device too.

    Args:
        text: `NAME[:KEY=VALUE...][@DEVICES]`, separated by commas.
        devices: Number of ranks of those that name none.

    Raises:
        UsageError: a strategy, a setting or a value is unknown or does not fit, or something is named twice.
    """
    found = [SERIAL]
    named = [contender for contender in _named(text, devices) if contender != SERIAL]
    for contender in named:
        if contender in found:
            raise UsageError(f"{contender.label!r} on {contender.devices} is named twice")
        alone = _on_one_device(contender)
        found += [contender, *([alone] if alone is not None and alone not in [*named, *found] else [])]
    return found


def _named(text: str, devices: int) -> Iterator[Contender]:
    # A name begins with a letter: full_steps=0-4,8 has commas of its own.
    for spec in re.split(r",(?=\s*[^\d\s])", text):
        label, at, count = spec.strip().partition("@")
        if at and not count.isdecimal():
            raise UsageError(f"{spec.strip()!r} must end with a number of devices, such as {label}@1")
        ranks = int(count) if at else 1 if label == "serial" else devices
        check_limits(f"devices of {label!r}", ranks, least=1, most=devices)
        config = _config(label)
        check_ranks(config, ranks)
        if config.strategy == "serial" and ranks != 1:
            raise UsageError(f"serial runs on one device, got {spec.strip()!r}")
        yield Contender(label, ranks, config)


def _config(label: str) -> ParallelConfig:
    strategy, *pairs = label.split(":")
    require_known("strategy", strategy, STRATEGIES)
    types = field_types(ParallelConfig) | field_types(PublishedSettings)
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"settings of a strategy look like {strategy}:KEY=VALUE, got {label!r}")
        if not KEYS[strategy]:
            raise UsageError(f"strategy {strategy!r} takes no settings, got {label!r}")
        require_known(f"setting of {strategy!r}", key, KEYS[strategy])
        is_text = str in types[key] or object in types[key]
        settings[key] = value if is_text else _value(value)
    published = {key: settings.pop(key) for key in PUBLISHED if key in settings}
    return ParallelConfig(strategy, published=PublishedSettings(**published), **settings)


def _on_one_device(contender: Contender) -> Contender | None:
    """The same without added devices; None where it saves no work, or needs more than one."""
    alone = replace(contender, devices=1, config=replace(contender.config, shards=None))
    try:
        check_ranks(alone.config, 1)
    except UsageError:
        return None
    return None if contender.is_exact else alone


def _value(text: str) -> Any:
    """JSON, or else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
