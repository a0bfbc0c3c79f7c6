"""The ranks of a pipeline as groups, each of which evaluates its rows together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import torch

from ..denoiser.evaluation import Evaluation, RecordedEvaluation, are_close
from ..denoiser.rows import split_rows
from ..distributed.comm import Comm
from ..errors import CommError, ShardError, UsageError
from .choice import choose_shards, is_large
from .costs import ShardCosts, measure_part, measure_shards
from .displaced import DisplacedGroup
from .group import ProcessGroup, ShardGroup, ThreadGroup, play
from .place import in_parts
from .shared import SharedNetworks

T = TypeVar("T")

Forward = Callable[[Evaluation, int, slice], torch.Tensor]
"""Evaluates some rows of a call for a rank: (rows, ...)."""


class RankGroups:
    """Divides ranks into groups of shards; groups and hooks are made once they are needed.

    Args:
        comm: The ranks.
        wanted: Shards of each group; None chooses.
        warm_up: Messages are displaced after so many evaluations (`DisplacedGroup`); None never does so.
        measures: The first evaluation of each form is measured, too.

    Attributes:
        why_whole: Why no evaluation is shared by ranks; empty where it may be.
        why_compiled: The same of networks as they are compiled in a run.
        networks: What they share.
        costs: What the latest shared evaluation of a run costs where it was measured.
        stage_costs: The same of the latest one in which a stage ran alone.
    """

    def __init__(self, comm: Comm, wanted: int | None, warm_up: int | None = None, measures: bool = False) -> None:
        self.why_whole = self.why_compiled = ""
        self.networks = SharedNetworks()
        self.costs: ShardCosts | None = None
        self.stage_costs: ShardCosts | None = None
        self._measures, self._measured = measures, dict[object, ShardCosts]()
        self._warm_up, self._displaced = warm_up, dict[ShardGroup, DisplacedGroup]()
        self._comm, self._wanted = comm, wanted
        self._groups: dict[int, list[ShardGroup]] = {}
        self._comms: list[Comm] = []
        self._sent = 0

    def count(self, evaluation: Evaluation) -> int:
        """How many ranks share the rows of an evaluation: 1 where each has rows of its own.

        Raises:
            UsageError: as many as were asked for cannot share it.
        """
        if self._wanted == 1 or self._comm.size == 1 or evaluation.is_whole or self.why_whole:
            return 1
        if self._wanted is not None:
            self.networks.check(evaluation, self._wanted)
        elif choose_shards(self._comm.size, evaluation.rows, self._comm.size) == 1:
            return 1  # however it can be cut: most runs, whose networks get no hooks
        elif not is_large(evaluation.sample):
            return 1
        elif why := self.networks.why_hidden(evaluation):
            self.why_compiled = why
            return 1
        return choose_shards(self._comm.size, evaluation.rows, self.networks.most_parts(evaluation), self._wanted)

    def prepare(self, evaluation: Evaluation) -> None:
        """Attach the hooks that some call of a run may need, before others hook the same modules."""
        if self._wanted != 1 and self._comm.size > 1:
            self.networks.why_hidden(evaluation)  # who asks finds them attached, unless all of it is one graph

    def make(self, shards: int, device: torch.device) -> None:
        """Groups of so many ranks, where there are none yet; ranks that have nothing to do take part in making them.

        No status is told meanwhile: all ranks are heard directly before.
        """
        if shards in self._groups:
            return
        size = self._comm.size
        if len(self._comm.local_ranks) == size:
            self._groups[shards] = [ThreadGroup(rank % shards, shards) for rank in range(size)]
            return
        comms = self._comm.split([range(first, first + shards) for first in range(0, size, shards)])
        self._comms += [comm for comm in comms if comm is not None]
        self._groups[shards] = [ProcessGroup(self._comms[-1], device)]

    def evaluate(
        self,
        evaluation: Evaluation,
        rows: Sequence[slice],
        shards: int,
        forward: Forward,
        stage: Forward | None = None,
    ) -> dict[int, torch.Tensor]:
        """The prediction of the rows of each local rank's group.

        Args:
            evaluation: The call.
            rows: Of each group of ranks.
            shards: Ranks of a group.
            forward: What a rank runs on its rows.
            stage: See `BranchEvaluator.evaluate`.

        Raises:
            ShardError: another rank of the group left in the middle.
        """
        local = self._comm.local_ranks
        if shards == 1:
            return {rank: forward(evaluation, rank, rows[rank]) for rank in local if rows[rank].stop > rows[rank].start}
        self.make(shards, evaluation.sample.device)
        predictions: dict[int, torch.Tensor] = {}
        for number, own in enumerate(rows):
            members = [rank for rank in local if rank // shards == number]
            if members and own.stop > own.start:
                work = self._work(evaluation, number * shards, own, forward)
                group = self._of(shards, members)
                before = group[0].sent
                predictions |= dict(zip(members, self._run(group, work), strict=True))
                # What is sent is in proportion to rows.
                self._sent = (group[0].sent - before) * evaluation.rows // (own.stop - own.start)
                if self._measures:
                    self._measure(group, evaluation, own, number * shards, stage)
        return predictions

    def described_costs(self) -> dict[str, Any]:
        """The costs as plain data for the report; empty where nothing was measured."""
        if self.costs is None:
            return {}
        stage = {} if self.stage_costs is None else self.stage_costs.to_dict()
        told = ("part", "messages", "received", "share")
        return self.costs.to_dict() | ({"outer": {name: stage[name] for name in told}} if stage else {})

    def take_sent(self) -> int:
        """Bytes that all ranks sent each other within the latest evaluation, told once."""
        sent, self._sent = self._sent, 0
        return sent

    def together(self, device: torch.device, work: Callable[[ShardGroup], torch.Tensor]) -> torch.Tensor:
        """What all ranks make of some work together, the same on every rank.

        Args:
            device: Where they work.
            work: What each of them does.

        Raises:
            ShardError: another rank left in the middle.
        """
        self.make(self._comm.size, device)
        return self._run(self._of(self._comm.size, self._comm.local_ranks), work)[0]

    def check_parts(self, recorded: RecordedEvaluation, consensus: Callable[[bool, str], list[bool]]) -> None:
        """Find out whether parts of pictures, evaluated apart, are what they are in whole calls, on every rank.

        Args:
            recorded: What whole calls predicted.
            consensus: Tells what all ranks found (`Channel.consensus`).

        Raises:
            UsageError: they are not, and shards were asked for.
        """
        shards = self.count(recorded)
        if shards == 1:
            return
        rows = split_rows(recorded.rows, recorded.branches, self._comm.size // shards) or []
        apart = Evaluation(recorded.calls, recorded.order)
        try:
            made = self.evaluate(apart, rows, shards, lambda evaluation, _, own: evaluation.run(own))
            fits = all(are_close(made[rank], recorded.run(rows[rank // shards])) for rank in made)
        except (RuntimeError, ValueError, TypeError, IndexError):  # of the network, or of a rank that had such an error
            fits = False
        if all(consensus(fits, "agree whether pictures can be cut")):
            return
        self.drop()
        name = type(recorded.calls[0].network).__name__
        self.why_whole = f"what {name} makes of parts of an image is not what it makes of the whole"
        if self._wanted is not None:
            raise UsageError(f"{self.why_whole}: ranks cannot share images; use shards=1")

    @property
    def made(self) -> list[int]:
        """The numbers of shards for which this rank is in a group."""
        return sorted(self._groups)

    def begin(self, made: Sequence[list[int]]) -> None:
        """Begin a run; where some ranks gave up groups, as an error came behind the others' last message, all do.

        Args:
            made: By all ranks.
        """
        self.forget()
        if any(other != made[0] for other in made):
            self.drop()

    def forget(self) -> None:
        """Forget what ranks said in an earlier run, what they had to do, and how networks were compiled."""
        self._displaced, self.why_compiled = {}, ""
        self.costs = self.stage_costs = None

    def release(self) -> None:
        """Give up what layers keep for a run, which is over."""
        for group in (*chain.from_iterable(self._groups.values()), *self._displaced.values()):
            group.kept.clear()

    def drop(self, aborts: bool = True) -> None:
        """Give groups up after a run that failed; all ranks alike, they are made anew."""
        self.forget()
        for comm in self._comms:
            comm.close(aborts)
        self._comms, self._groups = [], {}

    def remove(self) -> None:
        """Restore the networks."""
        self.drop(aborts=False)
        self.networks.unhook()

    def _work(
        self, evaluation: Evaluation, first: int, rows: slice, forward: Forward
    ) -> Callable[[ShardGroup], torch.Tensor]:
        def work(group: ShardGroup) -> torch.Tensor:
            sharing = self._perhaps_displaced(group)
            calls = tuple(
                replace(call, forward=self.networks.hooked(call.network).shared_by(sharing, call.forward))
                for call in evaluation.calls
            )
            with in_parts(sharing):  # before the network is called: of a ControlNet it is given that part only
                return forward(replace(evaluation, calls=calls), first + group.index, rows)

        return work

    def _measure(
        self, group: Sequence[ShardGroup], evaluation: Evaluation, rows: slice, first: int, stage: Forward | None
    ) -> None:
        """Find out once for each form what it costs that the group shares some rows, as it just did."""
        form, device = (group[0].count, rows.stop - rows.start, evaluation.sample.shape), evaluation.sample.device
        if form not in self._measured:
            part = self._work(evaluation, first, rows, lambda evaluation, _, own: evaluation.run(own))
            self._measured[form] = self._guarded(
                lambda: measure_shards(group, lambda: evaluation.run(rows), part, device)
            )
        self.costs = costs = self._measured[form]
        if stage is not None:
            part = self._work(evaluation, first, rows, stage)
            if (form, "stage") not in self._measured:
                self._measured[form, "stage"] = self._guarded(lambda: measure_part(costs, group, part, device))
            self.stage_costs = self._measured[form, "stage"]

    def _perhaps_displaced(self, group: ShardGroup) -> ShardGroup:
        """A rank as it takes part in a step."""
        if self._warm_up is None:
            return group
        displaced = self._displaced.setdefault(group, DisplacedGroup(group, self._warm_up))
        displaced.begin_step()
        return displaced

    def _run(self, group: Sequence[ShardGroup], work: Callable[[Any], torch.Tensor]) -> list[torch.Tensor]:
        """What the local ranks of a group make of some work; one that fails lets the others know."""
        if isinstance(group[0], ThreadGroup):
            return play(group, work)  # type: ignore[arg-type]
        return [self._guarded(lambda: work(group[0]))]

    def _guarded(self, work: Callable[[], T]) -> T:
        """What some work with messages within a group makes; where it fails, the others of the group are let know."""
        try:
            return work()
        except CommError as error:
            raise ShardError(
                f"a rank that shares this one's rows left in the middle of the network: {error}"
            ) from error
        except BaseException:
            self.drop()  # closes the connections, which ends the waits of the others
            raise

    def _of(self, shards: int, members: Sequence[int]) -> Sequence[ShardGroup]:
        """The groups that local ranks are in."""
        groups = self._groups[shards]
        return groups if len(groups) == 1 else [groups[rank] for rank in members]
