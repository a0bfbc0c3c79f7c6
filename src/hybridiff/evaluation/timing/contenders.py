"""Strategies to be compared, as one text names them: `serial,cfg,hybrid:fidelity=50,hybrid@1`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...config import ParallelConfig, quality_value
from ...errors import UsageError
from ...strategies.offered import find_strategy
from ..strategy_spec import check_config, parse_strategies


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
        """Whether it makes every evaluation at every step though its strategy need not."""
        return self.config.quality is not None and quality_value(self.config.quality) == 1.0


SERIAL = Contender("serial", 1, ParallelConfig("serial", 1))


def parse_contenders(text: str, devices: int) -> list[Contender]:
    """What a text names, after serial on one device: each on all devices, and what approximates on one device too.

    Args:
        text: See `parse_strategies`.
        devices: Number of ranks of those that name none.

    Raises:
        UsageError: a strategy, a setting or a value is unknown or does not fit, or something is named twice.
    """
    found = [SERIAL]
    named = [
        Contender(spec.removesuffix(f"@{config.devices}"), config.devices or devices, config)
        for spec, config in parse_strategies(text, devices).items()
        if config != SERIAL.config
    ]
    for contender in named:
        if contender in found:
            raise UsageError(f"{contender.label!r} on {contender.devices} is named twice")
        alone = _on_one_device(contender)
        found += [contender, *([alone] if alone is not None and alone not in [*named, *found] else [])]
    return found


def _on_one_device(contender: Contender) -> Contender | None:
    """The same without added devices; None where it saves no work, or needs more than one."""
    alone = replace(contender, devices=1, config=replace(contender.config, devices=1, shards=None))
    try:
        check_config(alone.config, 1)
    except UsageError:
        return None
    saves_work = find_strategy(contender.config.strategy).saves_work and not contender.is_exact
    return alone if saves_work else None
