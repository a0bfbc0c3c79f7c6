"""One call of a parallel pipeline: counts its steps, keeps its records, ends it on every rank alike."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from .channel import Channel, Status
from .comm import Comm, RankError
from .config import ParallelConfig
from .denoiser.call import DenoiserFamily, Evaluation, bind_arguments
from .strategies import STRATEGIES, Strategy
from .switching import Phase
from .trace import RunReport, StepRecord


class Run:
    """The life of one pipeline call on this rank.

    Args:
        pipe: The stock pipeline that is being called.
        family: The family of its denoiser.
        channels: Channels of the denoiser's prediction.
        config: What the user asked for.
        comm: The ranks.
    """

    def __init__(self, pipe: Any, family: DenoiserFamily, channels: int, config: ParallelConfig, comm: Comm) -> None:
        self.report = RunReport(strategy=config.strategy, devices=comm.size)
        self._pipe = pipe
        self._family = family
        self._channels = channels
        self._config = config
        self._comm = comm
        self._channel = Channel(comm, self._position)
        self._strategy: Strategy | None = None
        self._step = 0
        self._discrepancy: float | None = None
        self._answered = False  # whether this step had its guided evaluation
        self._started = self._step_started = time.perf_counter()
        self._sent_before: Counter[str] = Counter(comm.sent)

    def answer(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a denoiser call of the pipeline: the same output on every rank.

        Raises:
            RankError: another rank failed or left.
        """
        evaluation = self._evaluation(forward, args, kwargs)
        if self._strategy is None:
            self._strategy = self._begin(evaluation)
        if self._answered:
            return evaluation.wrap(self._strategy.predict_extra(evaluation, self._step))
        answer = self._strategy.predict(evaluation, self._step)
        self._answered = True
        self._discrepancy = answer.discrepancy
        if self._channel.interrupted:
            self._pipe._interrupt = True
        return evaluation.wrap(answer.prediction)

    def end_step(self) -> None:
        """Close the record of a step; the one place that counts steps."""
        now = time.perf_counter()
        sent = Counter(self._comm.sent)
        self.report.steps.append(
            StepRecord(
                index=self._step,
                phase=self._phase(),
                discrepancy=self._discrepancy,
                seconds=now - self._step_started,
                bytes_by_purpose=dict(sent - self._sent_before),
            )
        )
        self._sent_before, self._step_started = sent, now
        self._step += 1
        self._answered, self._discrepancy = False, None
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
        return report

    def fail(self, error: Exception) -> None:
        """End the run because of an error of this rank, and tell the other ranks."""
        if not isinstance(error, RankError):  # a RankError is known to all ranks already
            self._channel.fail(error)

    def _begin(self, evaluation: Evaluation) -> Strategy:
        self._require_same_shape(evaluation)
        self._step_started = time.perf_counter()
        if evaluation.branches == 1:
            self.report.notes.append(_unguided_note(self._pipe, evaluation.rows))
        return STRATEGIES[self._config.strategy](self._config, self._channel, self._pipe.num_timesteps)

    def _require_same_shape(self, evaluation: Evaluation) -> None:
        """Refuse, on every rank, calls that would not fit together in a gather."""
        shape = f"{tuple(evaluation.sample.shape)} {evaluation.sample.dtype}, {self._pipe.num_timesteps} steps"
        shapes = self._channel.agree(shape, "the first denoiser call")
        for rank, other in enumerate(shapes):
            if other != shapes[0]:
                raise RankError(f"ranks denoise different things: rank 0 {shapes[0]}, rank {rank} {other}")

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


def _unguided_note(pipe: Any, pictures: int) -> str:
    scale = getattr(pipe, "guidance_scale", None)
    remedy = "the pictures of the batch are split instead" if pictures > 1 else "every rank draws the picture"
    return f"guidance is off (guidance_scale {scale}): there is one branch only, nothing to partition; {remedy}"
