"""One call of a parallel pipeline: counts its steps, keeps its records, ends it on every rank alike."""

from __future__ import annotations

import contextlib
import copy
import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch

from .agreement import Setup
from .beginning import Beginning, late_notes
from .denoiser.adapters.base import execution_device
from .denoiser.call import DenoiserCall
from .denoiser.evaluation import Evaluation
from .denoiser.layout import GuidanceLayout
from .denoiser.reader import CallReader, count_steps
from .denoiser.watch import SchedulerWatch
from .distributed.channel import Channel
from .distributed.consistency import device_identity
from .distributed.status import Status
from .errors import RankError, ShardError
from .learner import LayoutLearner
from .report.report import RunReport, parts_of_call, peak_memory
from .report.timeline import Timeline
from .running_step import RunningStep
from .schedule.kinds import Phase, StepKind
from .strategies import Strategy
from .utils.clock import synchronize

T = TypeVar("T")


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
        trace = setup.config.trace
        self._timeline = Timeline(trace, partial(synchronize, execution_device(setup.pipe)) if trace else None)
        self._channel = Channel(setup.comm, self._where, self._timeline)
        self._learner = LayoutLearner(setup, arguments, layouts, self._channel)
        self._beginning: Beginning | None = None
        self._strategy: Strategy | None = None
        self._earlier: Strategy | None = None  # that of the steps before guidance began
        self._notes: list[str] = []
        self._steps: list[RunningStep] = []
        self._started = time.perf_counter()
        # Of the denoiser: when, and where; to ask the pipeline for its device looks through all networks.
        self._first_call, self._device = self._started, torch.device("cpu")
        self._current = RunningStep(0, self._started)
        self._sent_before: Counter[str] = Counter()
        self._undo = contextlib.ExitStack()  # what strategies attached

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """What has to be around the call of the pipeline."""
        counts = "callback_on_step_end" in inspect.signature(self._setup.pipe.__call__).parameters
        end = (lambda: None) if counts else self._end_begun_step
        watch = SchedulerWatch(self._setup.pipe.scheduler, self._watch, end)
        setup, watching = self._setup, contextlib.nullcontext() if self._setup.is_known else watch
        encoders, vae = setup.encoders.together(self.meet), setup.vae.together(self.meet, lambda: self._is_over)
        with self._undo, encoders, vae, watching:
            yield

    def answer(self, network: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a denoiser call of the pipeline: the same output on every rank.

        Raises:
            RankError: another rank failed or left.
        """
        call = DenoiserCall.bind(self._setup.adapter, network, forward, args, kwargs)
        if self._beginning is None:
            self._first_call, self._device = time.perf_counter(), call.sample.device
            self._beginning = self._agree_on(call)
            self._learner.recall(call)
        self._current.calls += 1
        if self._steps and self._current.calls == 1 and self._learner.forgets(call, self._steps[-1]):
            self._begin_anew()
        reader = self._learner.reader
        if reader is None:
            return self._learner.watched.answer(call)
        if self._current.answered:
            return self._answer_later(reader, call)
        evaluation = reader.evaluation(call)
        if self._strategy is None:
            self._begin(evaluation, reader.layout)
        return reader.answer(evaluation, self._made_up_for(evaluation, self._predict(evaluation)))

    def meet(self, what: str, thing: T) -> list[T] | None:
        """What all ranks say before they share work outside of the network; None within steps, where none is shared.

        Raises:
            RankError: another rank failed or left.
        """
        if self._beginning is not None and not self._is_over:
            return None  # a callback's, which other ranks may not have
        return self._channel.meet(what, thing)

    def end_step(self) -> None:
        """Close a step; the one place that counts steps."""
        if self._learner.reader is not None:
            self._learner.reader.end_step()
        elif self._learner.watched.has_begun:
            self._learn()
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
        if self._steps and self._learner.has_more_calls(self._steps[-1]):
            self._notes = late_notes(self._steps[-1].calls, self._steps)  # in the last step of all
        report = RunReport(strategy=self._setup.strategy, devices=self._setup.comm.size)
        now = time.perf_counter()
        report.seconds = now - self._started
        if self._steps:
            report.parts = parts_of_call(self._started, self._first_call, self._current.started, now)
        told = self._told_by_all((peak_memory(self._device), self._timeline.spans))
        report.peak_memory = [most for most, _ in told]
        report.spans = [span for _, spans in told for span in spans]
        report.steps = [step.record() for step in self._steps]
        if self._strategy is not None:
            report.tau1, report.tau2 = self._strategy.taus
            report.notes = list(dict.fromkeys([*self._notes, *self._strategy.notes()]))
            report.stages = self._strategy.stages()
            report.partition = self._strategy.partition
            report.shards = self._setup.groups.described_costs()
            report.layout = self._learner.reader.layout if self._learner.reader is not None else None
            report.fidelity = self._strategy.fidelity()
            report.ideal_is_known = self._strategy.ideal_is_known
        return report

    def follow(self, error: ShardError) -> NoReturn:
        """End the run because a rank that shares rows with this one did so; raises RankError, what happened there."""
        self._channel.follow()
        raise error

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

    def _learn(self) -> None:
        """Take in a step that every rank answered on its own: how the pipeline does guidance."""
        learned = self._learner.learn(self._current, is_new=self._strategy is None)
        if self._strategy is None:
            strategy = self._begin(learned.evaluation, learned.layout, learned.why_alone)
            if learned.extra_calls:
                strategy.disturb()
        self._current.extra += learned.extra_calls
        self._predict(learned.evaluation)

    def _begin(self, evaluation: Evaluation, layout: GuidanceLayout, why_alone: str = "") -> Strategy:
        """Have a strategy share this step and those to come."""
        assert self._beginning is not None
        if not self._steps:
            self._current.started = self._first_call
        self._strategy = self._beginning.strategy(evaluation, layout, self._current.index, bool(why_alone))
        self._notes = self._beginning.notes(evaluation, self._steps, why_alone, self._strategy.context.groups)
        return self._strategy

    def _begin_anew(self) -> None:
        """Guidance may have begun: the run learns how, as at its first step, and another strategy goes on."""
        self._channel.close(self._current.index)
        self._earlier, self._strategy = self._strategy, None

    def _made_up_for(self, evaluation: Evaluation, prediction: torch.Tensor) -> torch.Tensor:
        """The first shared prediction after guidance began, changed to make up for the cached steps before."""
        earlier, strategy = self._earlier, self._strategy
        if earlier is None or strategy is None or self._current.kind is not StepKind.FULL:
            return prediction
        self._earlier = None
        number = self._current.index - earlier.context.first_step
        return earlier.hand_over(strategy, number, prediction, evaluation.branches)

    def _agree_on(self, call: DenoiserCall) -> Beginning:
        """What ranks begin with; refuses, on every rank, calls that do not fit together."""
        setup = self._setup
        shape = f"{tuple(call.sample.shape)} {call.sample.dtype}, {count_steps(setup.pipe)} steps"
        mine = shape, device_identity(call.sample.device)
        met = self._channel.consensus(mine, "the first denoiser call")
        for rank, (other, _) in enumerate(met):
            if other != met[0][0]:
                raise RankError(f"ranks denoise different things: rank 0 {met[0][0]}, rank {rank} {other}")
        differ = len({identity for _, identity in met}) > 1
        scheduler, first = copy.deepcopy(setup.pipe.scheduler), call.timestep if setup.is_known else None
        return Beginning(setup, self._arguments, self._channel, self._timeline, differ, scheduler, first, self._undo)

    def _watch(self, given: torch.Tensor) -> None:
        """What the scheduler is given."""
        if self._learner.reader is None:
            self._learner.watched.show(given)

    def _end_begun_step(self) -> None:
        """A step of the scheduler; some pipelines have more than one a step of their own."""
        if self._current.answered or (self._learner.reader is None and self._learner.watched.has_begun):
            self.end_step()

    def _told_by_all(self, mine: T) -> list[T]:
        """What each process has to say at the end."""
        comm = self._setup.comm
        return [mine] if len(comm.local_ranks) == comm.size else comm.all_gather_object(mine)

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

    @property
    def _is_over(self) -> bool:
        """Whether all steps were taken."""
        strategy = self._strategy or self._earlier
        return strategy is not None and self._current.index == strategy.context.first_step + strategy.context.steps

    def _where(self) -> str:
        if self._strategy is None and self._earlier is None:
            return "the start of the run"
        return "the end of the run" if self._is_over else f"{self._phase().value}, step {self._current.index}"
