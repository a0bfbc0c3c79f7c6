"""How the pipeline of one run does guidance: known, remembered, or learned at a step that is watched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

from .agreement import Setup
from .denoiser.call import DenoiserCall
from .denoiser.evaluation import RecordedEvaluation, can_be_evaluated_apart
from .denoiser.layout import GuidanceLayout
from .denoiser.reader import CallReader, WatchedStep, batched_reader, known_reader
from .denoiser.rows import split_rows
from .distributed.channel import Channel
from .distributed.consistency import UNCOMPARED
from .running_step import RunningStep


@dataclass(frozen=True)
class Learned:
    """What a watched step showed.

    Attributes:
        evaluation: Its guided evaluation, as it was answered.
        layout: How the pipeline does guidance.
        extra_calls: Calls beside that evaluation.
        why_alone: Why such steps have to be left to every rank; empty where they have not.
    """

    evaluation: RecordedEvaluation
    layout: GuidanceLayout
    extra_calls: int
    why_alone: str


class LayoutLearner:
    """Has a reader for the calls of a run; watches a step where it has none, and where guidance may have begun.

    Args:
        setup: The parallel pipeline that is being called.
        arguments: Of the call, by name.
        layouts: What earlier calls learned; this one adds to it.
        channel: The messages of the run.

    Attributes:
        reader: Makes evaluations of the calls of a step; None while a step is watched.
        watched: The step that is watched while there is no reader.
    """

    def __init__(
        self, setup: Setup, arguments: dict[str, Any], layouts: dict[str, GuidanceLayout], channel: Channel
    ) -> None:
        self.reader: CallReader | None = known_reader(setup.pipe) if setup.is_known else None
        self.watched = WatchedStep(setup.pipe)
        self._setup, self._arguments, self._layouts, self._channel = setup, arguments, layouts, channel
        self._rows, self._calls = 0, 1  # in the first call of the latest step, and calls of the one before

    def recall(self, call: DenoiserCall) -> None:
        """Go on from what an earlier call of the pipeline learned; this is the first denoiser call."""
        self._rows, layout = call.rows, self._layouts.get(self._kind_of_call(call.rows))
        if self.reader is None and layout is not None:
            self.reader = batched_reader(layout, call.rows)

    def forgets(self, call: DenoiserCall, before: RunningStep) -> bool:
        """Whether the first call of a step shows that there may be more branches than are known; forgets these then.

        Args:
            call: The call; more rows than before are more branches in it.
            before: The step before; more calls than in the one before that were more branches, too.
        """
        if self.reader is None:
            return False
        has_more = call.rows > self._rows or self.has_more_calls(before)
        # Fewer ones: guidance has ended, and may come back; a known pipeline says so itself, and its strategy goes on.
        self._rows = max(call.rows, self._rows) if self._setup.is_known else call.rows
        self._calls = before.calls
        if not has_more:
            return False
        if not self._setup.is_known:
            self.reader, self.watched = None, WatchedStep(self._setup.pipe)
        return True

    def has_more_calls(self, step: RunningStep) -> bool:
        """Whether a step had more calls than the one before, which are more branches; of a known one they are not."""
        return self.reader is not None and not self._setup.is_known and step.calls > self._calls

    def learn(self, step: RunningStep, is_new: bool) -> Learned:
        """Take in the step that was watched.

        Args:
            step: That step.
            is_new: No strategy shares the steps yet.
        """
        watched, layout = self.watched, self.watched.layout()
        if is_new:  # by small objects, by which a rank that failed in the step is heard
            layout = self._channel.consensus(layout, "agree on how the pipeline does guidance")[0]
        evaluation, why = watched.evaluation(layout), watched.why_not_shared()
        if is_new and not why and not self._is_divisible(evaluation):
            layout, evaluation = replace(layout, is_whole=True), replace(evaluation, is_whole=True)
        if why:
            self.watched = WatchedStep(self._setup.pipe)
            return Learned(evaluation, layout, watched.extra_calls, why)
        if is_new:
            self._setup.groups.check_parts(evaluation, self._channel.consensus)
        self.reader, self._calls = watched.reader(layout), step.calls
        if layout.calls == 1 and layout.branches > 1 and not watched.extra_calls and not step.index:
            self._layouts[self._kind_of_call(watched.rows)] = layout
        return Learned(evaluation, layout, watched.extra_calls, why)

    def _is_divisible(self, recorded: RecordedEvaluation) -> bool:
        """Whether rows evaluated apart are what they are in the whole call, on every rank."""
        comm = self._channel.comm
        rows = split_rows(recorded.rows, recorded.branches, comm.size)
        if comm.size == 1 or rows is None:
            return True
        fits = can_be_evaluated_apart(recorded, [rows[rank] for rank in comm.local_ranks])
        return all(self._channel.consensus(fits, "agree whether rows can be evaluated apart"))

    def _kind_of_call(self, rows: int) -> str:
        """What decides how the pipeline stacks branches, as text: its numbers, and how many rows it evaluates."""
        scalars = {name: _scalar(value) for name, value in self._arguments.items() if name not in UNCOMPARED}
        numbers = {name: value for name, value in scalars.items() if isinstance(value, Number)}
        return f"{rows} rows, {sorted(numbers.items())}"


def _scalar(value: Any) -> Any:
    """The number that an array or a tensor without dimensions holds; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value
