"""One call of a parallel pipeline: counts its steps, keeps its records, ends it on every rank alike."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .agreement import Setup
from .denoiser.adapters.base import argument
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
from .numerics.guidance import classifier_free
from .report.report import RunReport
from .report.timeline import Span, Timeline
from .running_step import RunningStep
from .schedule.kinds import Phase, StepKind
from .strategies import STRATEGIES, Answer, RunContext, Strategy


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
        self._strategy: Strategy | None = None
        self._heterogeneous: bool | None = None
        self._notes: list[str] = []
        self._steps: list[RunningStep] = []
        self._total = 0  # number of steps that there are to be
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
        if self._heterogeneous is None:
            self._heterogeneous = self._meet(call)
            self._recall(call)
        if self._reader is None:
            return self._watched.answer(call)
        if self._current.answered:
            return self._answer_later(self._reader, call)
        evaluation = self._reader.evaluation(call)
        if self._strategy is None:
            first = call.timestep if self._setup.is_known else None
            self._strategy = self._begin(evaluation, self._reader.layout, self._setup.pipe.scheduler, first)
        return self._reader.answer(evaluation, self._predict(self._strategy, evaluation))

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
            report.notes = [*self._notes, *self._strategy.notes()]
            report.stages = self._strategy.stages()
            report.partition = self._strategy.partition
            report.branches = self._steps[0].branches if self._steps else 1
            report.layout = self._reader.layout if self._reader is not None else None
            report.fidelity = self._strategy.fidelity()
        if self._setup.config.trace:
            report.spans = self._all_spans()
        return report

    def fail(self, error: BaseException) -> None:
        """End the run because of an error of this rank, and tell the other ranks."""
        if not isinstance(error, RankError):  # a RankError is known to all ranks already
            self._channel.fail(error)

    def _predict(self, strategy: Strategy, evaluation: Evaluation) -> torch.Tensor:
        """The prediction of the guided evaluation of a step, and what it says of the step."""
        step = self._current
        answer: Answer = strategy.predict(evaluation, step.index)
        step.answered, step.reading, step.branches = True, answer.reading, evaluation.branches
        step.kind = strategy.kind(step.index)  # before a callback can end guidance
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
        return call.wrap(self._strategy.predict_extra(Evaluation((call,), (0,))))

    def _recall(self, call: DenoiserCall) -> None:
        """Go on from what an earlier call of the pipeline found out."""
        layout = self._layouts.get(self._kind_of_call(call.rows))
        if self._reader is None and layout is not None:
            self._reader = batched_reader(layout, call.rows)

    def _learn(self, watched: WatchedStep) -> None:
        """Take in a step that every rank answered on its own: how the pipeline does guidance."""
        layout, reason = watched.layout(), watched.why_not_shared()
        if self._heterogeneous:
            layout = self._channel.consensus(layout, "agree on how the pipeline does guidance")[0]
        evaluation = watched.evaluation(layout)
        if self._strategy is None:
            if not reason and not self._is_divisible(evaluation):
                layout, evaluation = replace(layout, is_whole=True), replace(evaluation, is_whole=True)
            if reason:
                self._notes.append(f"{type(self._setup.pipe).__name__}: {reason}; every rank evaluates everything")
            self._strategy = self._begin(evaluation, layout, watched.scheduler, None, serial=bool(reason))
            if watched.extra_calls:
                self._strategy.disturb()
        self._current.extra += watched.extra_calls
        self._predict(self._strategy, evaluation)
        if reason:
            self._watched = WatchedStep(self._setup.pipe)
            return
        self._reader = watched.reader(layout)
        if layout.calls == 1 and layout.branches > 1 and not watched.extra_calls:
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

    def _begin(
        self,
        evaluation: Evaluation,
        layout: GuidanceLayout,
        scheduler: Any,
        first_timestep: float | None,
        serial: bool = False,
    ) -> Strategy:
        setup = self._setup
        self._total = count_steps(setup.pipe)
        self._current.started = time.perf_counter()
        if evaluation.branches == 1:
            self._notes.append(_unguided_note(setup, evaluation.rows))
        if layout.is_whole:
            self._notes.append("images of a batch and its branches depend on each other: every rank evaluates all")
        context = RunContext(
            config=setup.config,
            settings=setup.settings,
            channel=self._channel,
            timeline=self._timeline,
            steps=self._total,
            pipe=setup.pipe,
            staged=setup.staged,
            heterogeneous=bool(self._heterogeneous),
            extra_steps=setup.adapter.extra_steps(setup.pipe, self._arguments, self._total),
            eta=argument(setup.pipe, self._arguments, "eta"),
            coefficients=self._coefficients(evaluation, layout),
            scheduler=scheduler,
            first_timestep=first_timestep,
        )
        return STRATEGIES["serial" if serial else setup.config.strategy](context, evaluation)

    def _coefficients(self, evaluation: Evaluation, layout: GuidanceLayout) -> tuple[float, ...]:
        """By which guidance multiplies the branches: as seen, or as its scale says."""
        if evaluation.branches == 1:
            return (1.0,)
        if layout.coefficients is not None:
            return layout.coefficients
        pipe = self._setup.pipe
        scales = (
            getattr(pipe, "guidance_scale", None),
            *map(self._arguments.get, ("true_cfg_scale", "guidance_scale")),
        )
        scale = next((float(scale) for scale in scales if isinstance(scale, (int, float))), 1.0)
        return (*classifier_free(scale)[:1], *[0.0] * (evaluation.branches - 2), classifier_free(scale)[1])

    def _meet(self, call: DenoiserCall) -> bool:
        """Whether ranks have heterogeneous devices; refuses, on every rank, calls that do not fit together."""
        shape = f"{tuple(call.sample.shape)} {call.sample.dtype}, {count_steps(self._setup.pipe)} steps"
        mine = shape, device_identity(call.sample.device)
        met = self._channel.consensus(mine, "the first denoiser call")
        for rank, (other, _) in enumerate(met):
            if other != met[0][0]:
                raise RankError(f"ranks denoise different things: rank 0 {met[0][0]}, rank {rank} {other}")
        return len({identity for _, identity in met}) > 1

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
        return self._strategy.phase(self._current.index) if self._strategy is not None else Phase.WARM_UP

    def _where(self) -> str:
        if self._strategy is None:
            return "the start of the run"
        if self._current.index == self._total:
            return "the end of the run"
        return f"{self._phase().value}, step {self._current.index}"


def _unguided_note(setup: Setup, images: int) -> str:
    scale = getattr(setup.pipe, "guidance_scale", None)
    remedy = "the images of the batch are split instead" if images > 1 else "every rank computes the image"
    return f"guidance is off (guidance_scale {scale}): there is one branch only, nothing to partition; {remedy}"


def _synchronizer(pipe: Any) -> Callable[[], None] | None:
    device = pipe.device
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else None
