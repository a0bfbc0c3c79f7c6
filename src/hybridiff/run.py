"""One call of a parallel pipeline: counts its steps, keeps its records, ends it on every rank alike."""

from __future__ import annotations

import contextlib
import copy
import inspect
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .agreement import Setup
from .beginning import Beginning
from .denoiser.call import DenoiserCall
from .denoiser.evaluation import Evaluation, can_be_evaluated_apart
from .denoiser.layout import GuidanceLayout
from .denoiser.reader import CallReader, WatchedStep, batched_reader, count_steps, known_reader
from .denoiser.rows import split_rows
from .denoiser.watch import SchedulerWatch
from .distributed.channel import Channel
from .distributed.consistency import device_identity
from .distributed.status import Status
from .errors import RankError
from .report.report import RunReport
from .report.timeline import Span, Timeline
from .running_step import RunningStep
from .schedule.kinds import Phase, StepKind
from .strategies import Strategy



class Run:
    """The life of one pipeline call on this rank.

    Args:
        setup: The parallel pipeline that is being called.
        arguments: Of the call, by name.
        layouts: What earlier calls found out of how the pipeline does guidance; this one adds to it.
    """

    def __init__(self, setup: Setup, arguments: dict[str, Any], layouts: dict[str, GuidanceLayout]) -> None:
        self._setup = setup
        self._arguments = arguments
        self._layouts = layouts
        self._timeline = Timeline(setup.config.trace, _synchronizer(setup.pipe) if setup.config.trace else None)
        self._channel = Channel(setup.comm, self._where, self._timeline)
        self._reader: CallReader | None = known_reader(setup.pipe) if setup.is_known else None
        self._watched = WatchedStep(setup.pipe)  # while there is no reader
        self._beginning: Beginning | None = None
        self._strategy: Strategy | None = None
        self._earlier: Strategy | None = None  # that of the steps before guidance began
        self._rows, self._calls = 0, 1  # in the first call of a step, and most calls of one
        self._notes: list[str] = []
        self._steps: list[RunningStep] = []
        self._started = time.perf_counter()
        self._current = RunningStep(0, self._started)
        self._sent_before: Counter[str] = Counter()

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """What has to be around the call of the pipeline."""
        if self._setup.is_known:
            return contextlib.nullcontext()
        counts = "callback_on_step_end" in inspect.signature(self._setup.pipe.__call__).parameters
        end = (lambda: None) if counts else self._end_begun_step
        return SchedulerWatch(self._setup.pipe.scheduler, self._watch, end)

    def answer(self, network: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a denoiser call of the pipeline: the same output on every rank.

        Raises:
            RankError: another rank failed or left.
        """
        call = DenoiserCall.bind(self._setup.adapter, network, forward, args, kwargs)
        if self._beginning is None:
            self._beginning = self._meet(call)
            self._recall(call)
        self._current.calls += 1
        if self._current.calls == 1 and self._has_more_branches(call):
            self._begin_anew()
        if self._reader is None:
            return self._watched.answer(call)
        if self._current.answered:
            return self._answer_later(self._reader, call)
        evaluation = self._reader.evaluation(call)
        if self._strategy is None:
            self._begin(evaluation, self._reader.layout)
        return self._reader.answer(evaluation, self._made_up_for(evaluation, self._predict(evaluation)))

    def end_step(self) -> None:
        """Close a step; the one place that counts steps."""
        if self._reader is None and self._watched.has_begun:
            self._learn(self._watched)
        elif self._reader is not None:
            self._reader.end_step()
        now = time.perf_counter()
        step, sent = self._current, Counter(self._channel.sent)
        step.phase, step.seconds, step.sent = self._phase(), now - step.started, sent - self._sent_before
        self._steps.append(step)
        self._current, self._sent_before = RunningStep(step.index + 1, now), sent
        self._delay_interrupt()

    def finish(self) -> RunReport:
        """End the run on all ranks at once.

        Raises:
            RankError: another rank failed, or is not at the end.
        """
        self._channel.finish()
        report = RunReport(strategy=self._setup.config.strategy, devices=self._setup.comm.size)
        report.seconds = time.perf_counter() - self._started
        report.steps = [step.record() for step in self._steps]
        if self._strategy is not None:
            report.tau1, report.tau2 = self._strategy.taus
            report.notes = list(dict.fromkeys([*self._notes, *self._strategy.notes()]))
            report.stages = self._strategy.stages()
            report.partition = self._strategy.partition
            report.fidelity = self._strategy.fidelity()
        if self._setup.config.trace:
            report.spans = self._all_spans()
        return report

    def fail(self, error: BaseException) -> None:
        """End the run because of an error of this rank, and tell the other ranks."""
        if not isinstance(error, RankError):  # a RankError is known to all ranks already
            self._channel.fail(error)

    def _predict(self, evaluation: Evaluation) -> torch.Tensor:
        """The prediction of the guided evaluation of a step, and what it says of the step."""
        step, strategy = self._current, self._strategy
        assert strategy is not None
        number = step.index - strategy.context.first_step
        answer = strategy.predict(evaluation, number)
        step.answered, step.reading, step.branches = True, answer.reading, evaluation.branches
        step.kind = strategy.kind(number)  # before a callback can end guidance
        if step.kind is StepKind.FULL:
            step.estimated = strategy.fidelity().get("estimated")
        if self._channel.interrupted:
            self._setup.pipe._interrupt = True
        return answer.prediction

    def _answer_later(self, reader: CallReader, call: DenoiserCall) -> Any:
        """A call after the first one of a step: another branch, foreseen, or something else beside it."""
        assert self._strategy is not None
        answered = reader.answer_later(call)
        if answered is not None:
            return answered
        if not self._setup.is_known:
            self._strategy.disturb()
        self._current.extra += 1
        prediction = self._strategy.predict_extra(Evaluation((call,), (0,)))
        return call.wrap(prediction if self._current.kind is StepKind.FULL else reader.beside_held(call, prediction))

    def _recall(self, call: DenoiserCall) -> None:
        """Go on from what an earlier call of the pipeline found out."""
        layout = self._layouts.get(self._kind_of_call(call.rows))
        if self._reader is None and layout is not None:
            self._reader = batched_reader(layout, call.rows)

    def _learn(self, watched: WatchedStep) -> None:
        """Take in a step that every rank answered on its own: how the pipeline does guidance."""
        layout, reason = watched.layout(), watched.why_not_shared()
        if self._strategy is None:  # small objects, by which a rank that failed in the step is heard
            layout = self._channel.consensus(layout, "agree on how the pipeline does guidance")[0]
        evaluation = watched.evaluation(layout)
        if self._strategy is None:
            if not reason and not self._is_divisible(evaluation):
                layout, evaluation = replace(layout, is_whole=True), replace(evaluation, is_whole=True)
            strategy = self._begin(evaluation, layout, is_alone=bool(reason))
            if reason:
                self._notes.append(f"{type(self._setup.pipe).__name__}: {reason}; every rank evaluates everything")
            if watched.extra_calls:
                strategy.disturb()
        self._current.extra += watched.extra_calls
        self._predict(evaluation)
        if reason:
            self._watched = WatchedStep(self._setup.pipe)
            return
        self._reader, self._calls = watched.reader(layout), max(self._calls, self._current.calls)
        if layout.calls == 1 and layout.branches > 1 and not watched.extra_calls and not self._current.index:
            self._layouts[self._kind_of_call(watched.rows)] = layout

    def _is_divisible(self, recorded: Evaluation) -> bool:
        """Whether rows evaluated apart are what they are in the whole call, on every rank."""
        comm = self._setup.comm
        rows = split_rows(recorded.rows, recorded.branches, comm.size)
        if comm.size == 1 or rows is None:
            return True
        fits = can_be_evaluated_apart(recorded, [rows[rank] for rank in comm.local_ranks])
        return all(self._channel.consensus(fits, "agree whether rows can be evaluated apart"))

    def _kind_of_call(self, rows: int) -> str:
        """What decides how the pipeline stacks branches, as text: its numbers, and how many rows it evaluates."""
        numbers = {name: value for name, value in self._arguments.items() if isinstance(value, (int, float))}
        return f"{rows} rows, {sorted(numbers.items())}"

    def _begin(self, evaluation: Evaluation, layout: GuidanceLayout, is_alone: bool = False) -> Strategy:
        """Have a strategy share this step and those to come."""
        assert self._beginning is not None
        step, notes = self._current, self._beginning.notes(evaluation)
        if self._steps:
            before = max(earlier.branches for earlier in self._steps)
            if evaluation.branches > before:
                notes.insert(0, _late_note(step.index, before, evaluation.branches))
        else:
            step.started = time.perf_counter()
        self._notes, self._rows = notes, evaluation.calls[0].rows
        self._strategy = self._beginning.strategy(evaluation, layout, step.index, is_alone)
        return self._strategy

    def _has_more_branches(self, call: DenoiserCall) -> bool:
        """Whether the first call of a step shows that there may be more branches than the ranks share."""
        if self._strategy is None or self._reader is None:
            return False
        more_calls = not self._setup.is_known and self._steps[-1].calls > self._calls
        return more_calls or call.rows > self._rows

    def _begin_anew(self) -> None:
        """Guidance may have begun: the run learns how, as at its first step, and another strategy goes on."""
        self._channel.close(self._current.index)
        self._earlier, self._strategy = self._strategy, None
        self._calls = max(self._calls, self._steps[-1].calls)
        if not self._setup.is_known:
            self._reader, self._watched = None, WatchedStep(self._setup.pipe)

    def _made_up_for(self, evaluation: Evaluation, prediction: torch.Tensor) -> torch.Tensor:
        """The first shared prediction after guidance began, changed to make up for the cached steps before."""
        earlier = self._earlier
        if earlier is None or self._current.kind is not StepKind.FULL:
            return prediction
        assert self._strategy is not None
        self._earlier = None
        number = self._current.index - earlier.context.first_step
        return earlier.hand_over(self._strategy, number, prediction, evaluation.branches)

    def _meet(self, call: DenoiserCall) -> Beginning:
        """What ranks begin with; refuses, on every rank, calls that do not fit together."""
        setup = self._setup
        shape = f"{tuple(call.sample.shape)} {call.sample.dtype}, {count_steps(setup.pipe)} steps"
        mine = shape, device_identity(call.sample.device)
        met = self._channel.consensus(mine, "the first denoiser call")
        for rank, (other, _) in enumerate(met):
            if other != met[0][0]:
                raise RankError(f"ranks denoise different things: rank 0 {met[0][0]}, rank {rank} {other}")
        is_heterogeneous = len({identity for _, identity in met}) > 1
        scheduler, first = copy.deepcopy(setup.pipe.scheduler), call.timestep if setup.is_known else None
        return Beginning(setup, self._arguments, self._channel, self._timeline, is_heterogeneous, scheduler, first)

    def _watch(self, given: torch.Tensor) -> None:
        """What the scheduler is given."""
        if self._reader is None:
            self._watched.show(given)

    def _end_begun_step(self) -> None:
        """A step of the scheduler; some pipelines have more than one a step of their own."""
        if self._current.answered or (self._reader is None and self._watched.has_begun):
            self.end_step()

    def _all_spans(self) -> list[Span]:
        """The spans of all ranks, on every rank."""
        mine, comm = self._timeline.spans, self._setup.comm
        if len(comm.local_ranks) == comm.size:
            return mine
        return [span for spans in comm.all_gather_object(mine) for span in spans]

    def _delay_interrupt(self) -> None:
        """Let a request to stop ride with the next message, so that all ranks stop after the same step."""
        if self._setup.comm.size == 1 or not self._channel.is_open or self._channel.interrupted:
            return
        if getattr(self._setup.pipe, "_interrupt", False):
            self._setup.pipe._interrupt = False
            self._channel.status = Status.INTERRUPTED

    def _phase(self) -> Phase:
        strategy = self._strategy or self._earlier
        return Phase.WARM_UP if strategy is None else strategy.phase(self._current.index - strategy.context.first_step)

    def _where(self) -> str:
        strategy = self._strategy or self._earlier
        if strategy is None:
            return "the start of the run"
        if self._current.index == strategy.context.first_step + strategy.context.steps:
            return "the end of the run"
        return f"{self._phase().value}, step {self._current.index}"


def _late_note(step: int, before: int, branches: int) -> str:
    return (
        f"guidance began at step {step}: {before} of {branches} branches before it; the steps from there on are shared "
        "anew"
    )


def _synchronizer(pipe: Any) -> Callable[[], None] | None:
    device = pipe.device
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else None
