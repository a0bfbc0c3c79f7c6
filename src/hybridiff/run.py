"""One call of a parallel pipeline: counts its steps, keeps its records, ends it on every rank alike."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from .config import ParallelConfig
from .denoiser.call import DenoiserFamily, Evaluation, bind_arguments
from .denoiser.stages import StagedDenoiser
from .distributed.channel import Channel, Status
from .distributed.comm import Comm, RankError
from .report.report import RunReport, Span, StepRecord, Timeline
from .schedule.kinds import Phase, StepKind
from .strategies import STRATEGIES, RunContext, Strategy


class Run:
    """The life of one pipeline call on this rank.

    Args:
        pipe: The stock pipeline that is being called.
        family: The family of its denoiser.
        channels: Channels of the denoiser's prediction.
        config: What the user asked for.
        comm: The ranks.
        staged: The denoiser, ready to be cut, for strategies that do so.
    """

    def __init__(
        self,
        pipe: Any,
        family: DenoiserFamily,
        channels: int,
        config: ParallelConfig,
        comm: Comm,
        staged: StagedDenoiser | None = None,
    ) -> None:
        self.report = RunReport(strategy=config.strategy, devices=comm.size)
        self._pipe = pipe
        self._family = family
        self._channels = channels
        self._config = config
        self._comm = comm
        self._staged = staged
        self._timeline = Timeline(config.trace, _synchronizer(pipe) if config.trace else None)
        self._channel = Channel(comm, self._position, self._timeline)
        self._strategy: Strategy | None = None
        self._step = 0
        self._kind = StepKind.FULL
        self._discrepancy: float | None = None
        self._drift: float | None = None
        self._answered = False  # whether this step had its guided evaluation
        self._extra = 0  # evaluations of this step after that one
        self._started = self._step_started = time.perf_counter()
        self._sent_before: Counter[str] = Counter()

    def answer(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a denoiser call of the pipeline: the same output on every rank.

        Raises:
            RankError: another rank failed or left.
        """
        evaluation = self._evaluation(forward, args, kwargs)
        if self._strategy is None:
            self._strategy = self._begin(evaluation)
        if self._answered:
            self._extra += 1
            return evaluation.wrap(self._strategy.predict_extra(evaluation, self._step))
        answer = self._strategy.predict(evaluation, self._step)
        self._kind = self._strategy.kind(self._step)  # before a callback can end guidance
        self._answered = True
        self._discrepancy, self._drift = answer.discrepancy, answer.drift
        if self._channel.interrupted:
            self._pipe._interrupt = True
        return evaluation.wrap(answer.prediction)

    def end_step(self) -> None:
        """Close the record of a step; the one place that counts steps."""
        now = time.perf_counter()
        sent = Counter(self._channel.sent)
        self.report.steps.append(
            StepRecord(
                index=self._step,
                phase=self._phase(),
                kind=self._kind,
                discrepancy=self._discrepancy,
                drift=self._drift,
                seconds=now - self._step_started,
                bytes_by_purpose=dict(sent - self._sent_before),
                extra_evaluations=self._extra,
            )
        )
        self._sent_before, self._step_started = sent, now
        self._step += 1
        self._answered, self._extra = False, 0
        self._discrepancy, self._drift = None, None
        self._delay_interrupt()

    def finish(self) -> RunReport:
        """End the run on all ranks at once.

        Raises:
            RankError: another rank failed, or is not at the end.
        """
        self._channel.finish()
        report = self.report
        report.seconds = time.perf_counter() - self._started
        if self._strategy is not None:
            report.tau1, report.tau2 = self._strategy.taus
            report.notes += self._strategy.notes()
            report.stages = self._strategy.stages()
            report.shares = self._strategy.shares
        if self._config.trace:
            report.spans = self._all_spans()
        return report

    def fail(self, error: BaseException) -> None:
        """End the run because of an error of this rank, and tell the other ranks."""
        if not isinstance(error, RankError):  # a RankError is known to all ranks already
            self._channel.fail(error)

    def _begin(self, evaluation: Evaluation) -> Strategy:
        kinds = self._meet(evaluation)
        self._step_started = time.perf_counter()
        if evaluation.branches == 1:
            self.report.notes.append(_unguided_note(self._pipe, evaluation.rows))
        context = RunContext(
            config=self._config,
            channel=self._channel,
            timeline=self._timeline,
            steps=self._pipe.num_timesteps,
            pipe=self._pipe,
            staged=self._staged,
            unlike_devices=len(kinds) > 1,
        )
        return STRATEGIES[self._config.strategy](context)

    def _all_spans(self) -> list[Span]:
        """The spans of all ranks, on every rank."""
        mine = self._timeline.spans
        if len(self._comm.members) == self._comm.size:
            return mine
        return [span for spans in self._comm.exchange(mine) for span in spans]

    def _meet(self, evaluation: Evaluation) -> list[str]:
        """The kinds of device that ranks have, each once; refuses, on every rank, calls that do not fit together."""
        shape = f"{tuple(evaluation.sample.shape)} {evaluation.sample.dtype}, {self._pipe.num_timesteps} steps"
        met = self._channel.agree((shape, device_kind(evaluation.sample.device)), "the first denoiser call")
        for rank, (other, _) in enumerate(met):
            if other != met[0][0]:
                raise RankError(f"ranks denoise different things: rank 0 {met[0][0]}, rank {rank} {other}")
        return sorted({kind for _, kind in met})

    def _evaluation(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Evaluation:
        guided = not self._answered and bool(self._pipe.do_classifier_free_guidance)
        return Evaluation(
            family=self._family,
            forward=forward,
            arguments=bind_arguments(forward, args, kwargs),
            branches=2 if guided else 1,
            channels=self._channels,
        )

    def _delay_interrupt(self) -> None:
        """Let a request to stop ride with the next packet, so that all ranks stop after the same step."""
        if self._comm.size == 1 or not self._channel.is_open or self._channel.interrupted:
            return
        if getattr(self._pipe, "_interrupt", False):
            self._pipe._interrupt = False
            self._channel.status = Status.INTERRUPTED

    def _phase(self) -> Phase:
        return self._strategy.phase(self._step) if self._strategy is not None else Phase.WARM_UP

    def _position(self) -> str:
        return f"{self._phase().value}, step {self._step}" if self._strategy is not None else "the start of the run"


def device_kind(device: torch.device) -> str:
    """What a device is called; devices of one kind compute the same, bit for bit."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


def _unguided_note(pipe: Any, pictures: int) -> str:
    scale = getattr(pipe, "guidance_scale", None)
    remedy = "the pictures of the batch are split instead" if pictures > 1 else "every rank draws the picture"
    return f"guidance is off (guidance_scale {scale}): there is one branch only, nothing to partition; {remedy}"


def _synchronizer(pipe: Any) -> Callable[[], None] | None:
    device = pipe.device
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else None
