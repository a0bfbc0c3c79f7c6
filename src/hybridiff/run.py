"""One call of a parallel pipeline: counts its steps, keeps its records, ends it on every rank alike."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .agreement import Setup
from .denoiser.adapters.base import argument
from .denoiser.call import Evaluation, bind_arguments
from .distributed.channel import Channel
from .distributed.consistency import device_identity
from .distributed.reading import Reading
from .distributed.status import Status
from .errors import RankError
from .report.report import RunReport, StepRecord
from .report.timeline import Span, Timeline
from .schedule.kinds import Phase, StepKind
from .strategies import STRATEGIES, Answer, RunContext, Strategy


@dataclass
class _Step:
    """A step that runs, or has run; what was measured of it may still be on its way."""

    index: int
    started: float
    phase: Phase = Phase.WARM_UP
    kind: StepKind = StepKind.FULL
    answered: bool = False  # whether it had its guided evaluation
    extra: int = 0  # evaluations after that one
    reading: Reading | None = None
    seconds: float = 0.0
    sent: Counter[str] | None = None
    estimated: float | None = None  # fidelity in dB

    def record(self) -> StepRecord:
        measured = dict(zip(("discrepancy", "drift"), self.reading.values() if self.reading else (), strict=False))
        drift = measured.get("drift", math.nan)
        return StepRecord(
            index=self.index,
            phase=self.phase,
            kind=self.kind,
            discrepancy=measured.get("discrepancy"),
            drift=drift if math.isfinite(drift) else None,
            seconds=self.seconds,
            bytes_by_purpose=dict(self.sent or {}),
            estimated=self.estimated,
            extra_evaluations=self.extra,
        )


class Run:
    """The life of one pipeline call on this rank.

    Args:
        setup: The parallel pipeline that is being called.
        arguments: Of the call, by name.
    """

    def __init__(self, setup: Setup, arguments: dict[str, Any]) -> None:
        self._setup = setup
        self._arguments = arguments
        self._timeline = Timeline(setup.config.trace, _synchronizer(setup.pipe) if setup.config.trace else None)
        self._channel = Channel(setup.comm, self._where, self._timeline)
        self._strategy: Strategy | None = None
        self._notes: list[str] = []
        self._steps: list[_Step] = []
        self._started = time.perf_counter()
        self._current = _Step(0, self._started)
        self._sent_before: Counter[str] = Counter()

    def answer(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a denoiser call of the pipeline: the same output on every rank.

        Raises:
            RankError: another rank failed or left.
        """
        evaluation = self._evaluation(forward, args, kwargs)
        if self._strategy is None:
            self._strategy = self._begin(evaluation)
        step = self._current
        if step.answered:
            step.extra += 1
            return evaluation.wrap(self._strategy.predict_extra(evaluation))
        answer: Answer = self._strategy.predict(evaluation, step.index)
        step.answered, step.reading = True, answer.reading
        step.kind = self._strategy.kind(step.index)  # before a callback can end guidance
        if step.kind is StepKind.FULL:
            step.estimated = self._strategy.fidelity().get("estimated")
        if self._channel.interrupted:
            self._setup.pipe._interrupt = True
        return evaluation.wrap(answer.prediction)

    def end_step(self) -> None:
        """Close a step; the one place that counts steps."""
        now = time.perf_counter()
        step, sent = self._current, Counter(self._channel.sent)
        step.phase, step.seconds, step.sent = self._phase(), now - step.started, sent - self._sent_before
        self._steps.append(step)
        self._current, self._sent_before = _Step(step.index + 1, now), sent
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
            report.fidelity = self._strategy.fidelity()
        if self._setup.config.trace:
            report.spans = self._all_spans()
        return report

    def fail(self, error: BaseException) -> None:
        """End the run because of an error of this rank, and tell the other ranks."""
        if not isinstance(error, RankError):  # a RankError is known to all ranks already
            self._channel.fail(error)

    def _begin(self, evaluation: Evaluation) -> Strategy:
        setup, steps = self._setup, self._setup.pipe.num_timesteps
        heterogeneous = self._meet(evaluation)
        self._current.started = time.perf_counter()
        if evaluation.branches == 1:
            self._notes.append(_unguided_note(setup.pipe, evaluation.rows))
        context = RunContext(
            config=setup.config,
            settings=setup.settings,
            channel=self._channel,
            timeline=self._timeline,
            steps=steps,
            pipe=setup.pipe,
            staged=setup.staged,
            heterogeneous=heterogeneous,
            extra_steps=setup.adapter.extra_steps(setup.pipe, self._arguments, steps),
            eta=argument(setup.pipe, self._arguments, "eta"),
        )
        return STRATEGIES[setup.config.strategy](context, evaluation)

    def _meet(self, evaluation: Evaluation) -> bool:
        """Whether ranks have heterogeneous devices; refuses, on every rank, calls that do not fit together."""
        shape = f"{tuple(evaluation.sample.shape)} {evaluation.sample.dtype}, {self._setup.pipe.num_timesteps} steps"
        mine = shape, device_identity(evaluation.sample.device)
        met = self._channel.consensus(mine, "the first denoiser call")
        for rank, (other, _) in enumerate(met):
            if other != met[0][0]:
                raise RankError(f"ranks denoise different things: rank 0 {met[0][0]}, rank {rank} {other}")
        return len({identity for _, identity in met}) > 1

    def _evaluation(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        guided = not self._current.answered and bool(self._setup.pipe.do_classifier_free_guidance)
        return Evaluation(
            adapter=self._setup.adapter,
            forward=forward,
            arguments=bind_arguments(forward, args, kwargs),
            branches=2 if guided else 1,
            channels=self._setup.network.config.out_channels,
        )

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
        if self._current.index == self._setup.pipe.num_timesteps:
            return "the end of the run"
        return f"{self._phase().value}, step {self._current.index}"


def _unguided_note(pipe: Any, images: int) -> str:
    scale = getattr(pipe, "guidance_scale", None)
    remedy = "the images of the batch are split instead" if images > 1 else "every rank computes the image"
    return f"guidance is off (guidance_scale {scale}): there is one branch only, nothing to partition; {remedy}"


def _synchronizer(pipe: Any) -> Callable[[], None] | None:
    device = pipe.device
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else None
