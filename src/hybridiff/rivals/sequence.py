"""`sequence`: ranks share each evaluation by tokens, or by rows of a U-Net's picture; exact, as xDiT's USP is.

A preset of `cfg` with shards, to be compared with: keys and values are gathered, or heads exchanged (DeepSpeed-Ulysses,
arXiv 2309.14509), whichever is cheaper; there is no ring (arXiv 2310.01889). Text is cut as well where it is a stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..config import BRANCHES, ParallelConfig
from ..errors import UsageError
from ..strategies.cfg import CfgStrategy
from ..strategies.offered import make_settings


@dataclass(frozen=True)
class SequenceSettings:
    """Settings of `sequence`."""

    split_batch: bool | None = field(
        default=None,
        metadata={"help": "whether each guidance branch gets half of the ranks; unless given from four ranks on"},
    )


class SequenceStrategy(CfgStrategy):
    """All ranks share the evaluation of both branches, or half of them that of each."""

    name = "sequence"
    settings: ClassVar[type[SequenceSettings]] = SequenceSettings

    @classmethod
    def check_ranks(cls, config: ParallelConfig, ranks: int) -> None:
        make_settings(cls.settings, config.settings)
        _check_split(config, ranks)

    @classmethod
    def adapt(cls, config: ParallelConfig, ranks: int) -> ParallelConfig:
        return replace(config, strategy="cfg", settings={}, shards=shards_of(config, ranks))


def shards_of(config: ParallelConfig, ranks: int) -> int:
    """How many ranks share an evaluation, as the setting `split_batch` has it."""
    splits = config.settings.get("split_batch")
    if splits is None:
        splits = ranks > BRANCHES and ranks % BRANCHES == 0
    return ranks // BRANCHES if splits and ranks > 1 else ranks


def _check_split(config: ParallelConfig, ranks: int) -> None:
    """Refuse numbers of ranks that cannot be halved, and shards of the user's own; raises UsageError."""
    if config.shards is not None:
        raise UsageError(
            f"shards of {config.strategy!r} follow from its setting split_batch, got shards={config.shards}; leave "
            "them out, or use 'cfg'"
        )
    if config.settings.get("split_batch") and ranks > 1 and ranks % BRANCHES:
        raise UsageError(f"{ranks} ranks cannot be halved between two guidance branches; use split_batch=false")
