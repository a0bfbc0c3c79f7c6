"""`cached_cfg`: condition-based partitioning with one of diffusers' step caches on each rank's network."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin

from ..config import ParallelConfig
from ..denoiser.evaluation import Evaluation
from ..errors import UsageError
from ..strategies.base import Answer, RunContext
from ..strategies.cfg import CfgStrategy
from ..strategies.evaluator import BranchEvaluator
from ..strategies.offered import make_settings
from ..strategies.steps.full import FullStep
from ..utils.names import require_known
from .caches import AttachedCache, apply_first_block, apply_taylorseer

CACHES = ("first_block", "taylorseer")


@dataclass(frozen=True)
class CachedCfgSettings:
    """Settings of `cached_cfg`."""

    cache: str = field(default="first_block", metadata={"help": "first_block (transformers) or taylorseer"})
    threshold: float = field(
        default=0.1, metadata={"help": "change of the first block's residual from which all blocks run", "least": 0}
    )
    interval: int = field(
        default=3, metadata={"help": "steps from one that taylorseer computes to the next", "least": 1}
    )
    order: int = field(default=1, metadata={"help": "order of taylorseer's extrapolation", "least": 0})


class CachedCfgStrategy(CfgStrategy):
    """Each rank evaluates its rows, by a network that leaves out what its cache says."""

    name = "cached_cfg"
    hooks_layers = True
    saves_work = True
    ideal_is_known = False

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self.evaluator = BranchEvaluator(context.channel, context.timeline, context.steps)
        self.full = FullStep(self.evaluator, self.measures_drift)
        self._network: Any = first.calls[0].network
        settings = make_settings(CachedCfgSettings, context.config.settings)

        def apply(network: torch.nn.Module) -> None:
            if settings.cache == "first_block":
                apply_first_block(network, settings.threshold)
            else:
                apply_taylorseer(network, settings.interval, settings.order, context.steps)

        try:
            attached = AttachedCache(self._network, apply)
        except (LookupError, ValueError, AttributeError) as error:  # it knows no such blocks; the same on every rank
            name = type(self._network).__name__
            raise UsageError(
                f"the cache {settings.cache!r} does not fit {name}; use taylorseer on a U-Net, or 'cfg'"
            ) from error
        context.undo.callback(attached.remove)

    @classmethod
    def check_ranks(cls, config: ParallelConfig, ranks: int) -> None:
        require_known("cache", make_settings(CachedCfgSettings, config.settings).cache, CACHES)
        if config.shards not in (None, 1):
            raise UsageError("strategy 'cached_cfg' cannot share an image between ranks; use shards=1")

    def notes(self) -> list[str]:
        return ["the ideal of the schedule counts every step as full: what the cache leaves out shows in times only"]

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        self.channel.begin_step(step, self.kind(step), evaluation.branches > 1)
        with self._state("all rows"):  # where these cannot be evaluated apart
            return self.full.run(evaluation, self._run)

    def predict_extra(self, evaluation: Evaluation) -> torch.Tensor:
        with self._state("beside"):
            return evaluation.run()

    def _run(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        with self._state(f"rank {rank}, rows {rows.start} to {rows.stop} of {evaluation.rows}"):
            return self.evaluator.run(evaluation, rank, rows)

    def _state(self, name: str) -> AbstractContextManager[Any]:
        """Has the cache use a state of its own, as calls with other rows must."""
        context: AbstractContextManager[Any] = CacheMixin.cache_context(self._network, name)
        return context
