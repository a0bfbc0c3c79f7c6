"""`distrifusion`: displaced patches (DistriFusion, arXiv 2402.19481), a preset of `cfg` with displaced shards.

Each rank has a band of the picture (a U-Net) or a part of the tokens (a transformer), and goes on with what the others
said one step earlier. Differences from the published method: the first convolution has its neighbours' rows of the step
before, too; group normalizations correct displaced means and variances by this rank's own change, in place of those of
x and its square; a transformer's text is cut as well; any number of ranks, images, sizes and solvers will do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..config import ParallelConfig
from ..strategies.offered import make_settings
from .sequence import SequenceSettings, SequenceStrategy, shards_of


@dataclass(frozen=True)
class DistriFusionSettings(SequenceSettings):
    """Settings of `distrifusion`; two ranks with `split_batch` have a branch each and displace nothing."""

    warm_up: int = field(
        default=4, metadata={"help": "the last step, from 0, in which all messages are of now", "least": 0}
    )


class DistriFusionStrategy(SequenceStrategy):
    """Ranks share evaluations as those of `sequence` do, and wait for nobody after the warm-up."""

    name = "distrifusion"
    settings = DistriFusionSettings

    @classmethod
    def adapt(cls, config: ParallelConfig, ranks: int) -> ParallelConfig:
        warm_up = make_settings(DistriFusionSettings, config.settings).warm_up
        shared = super().adapt(config, ranks)
        return replace(shared, displaced=shards_of(config, ranks) > 1, displaced_warm_up=warm_up)
