"""A pipeline that generates by one config in this process, and says how each run went."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any

from ..config import ParallelConfig
from ..denoiser.adapters import find_denoiser
from ..models.schedulers import exchanged_scheduler
from ..pipeline import parallelize
from ..report.report import RunReport
from ..schedule.calibration import Calibration
from ..schedule.presets import ModelSettings, model_name

Splits = dict[str, dict[str, Any]]
"""Where the network is split, by kind of steps (pipelined, reuse): index, and time of the outer and the inner stage.

Measured once for all settings, so that their ideal speed-ups rest on the same times; ready for JSON.
"""


@dataclass(frozen=True)
class RunSummary:
    """How one run went.

    Attributes:
        ideal_speedup: Of the recorded schedule, against one device in as many steps; NaN where it is not known.
        schedule: One letter per step: f(ull), p(ipelined), r(euse), c(ached), a(head).
        tau1: Last step before the parallel phase, None where there was none.
        tau2: Last step of the parallel phase, likewise.
        estimated: Fidelity in dB that a promised run estimates of itself, of the worst image; None of any other.
        notes: Of its report.
    """

    ideal_speedup: float
    schedule: str
    tau1: int | None = None
    tau2: int | None = None
    estimated: float | None = None
    notes: tuple[str, ...] = ()


class SimulatedPipeline:
    """A stock pipeline whose ranks are all played in this process, until it is detached.

    Args:
        pipe: The stock pipeline.
        config: How the ranks work together.
        splits: Where the network is split, and what the stages cost; as in any other run unless given.
        scheduler: Takes the place of the pipeline's own until then, see `schedulers.SCHEDULERS`.
    """

    def __init__(
        self, pipe: Any, config: ParallelConfig, splits: Splits | None = None, scheduler: str | None = None
    ) -> None:
        if splits is not None:
            config = replace(config, calibration=_with_split_points(pipe, config.calibration, splits))
        self._splits = splits
        with contextlib.ExitStack() as undo:
            undo.enter_context(exchanged_scheduler(pipe, scheduler))
            self._parallel = parallelize(pipe, replace(config, simulate=True))
            undo.callback(self._parallel.detach)
            self._undo = undo.pop_all()

    def __call__(self, **arguments: Any) -> Any:
        return self._parallel(**arguments)

    @property
    def report(self) -> RunReport:
        """Of the last call, with the costs of the stages as they were given; of two stages that is."""
        report = self._parallel.report
        assert report is not None
        if self._splits is None or "outer" not in report.stages or report.stages["deeper"]:
            return report
        return replace(report, stages=self._splits["pipelined" if report.strategy == "published" else "reuse"])

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call, as stock pipelines count them: each evaluates the network once."""
        return len(self.report.steps)

    @property
    def summary(self) -> RunSummary:
        """Of the last call."""
        report = self.report
        estimated, speedup = report.fidelity.get("estimated"), report.ideal_speedup or 1.0
        ideal = speedup if report.ideal_is_known else math.nan
        return RunSummary(ideal, report.schedule, report.tau1, report.tau2, estimated, tuple(report.notes))

    def __enter__(self) -> SimulatedPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()


def _with_split_points(pipe: Any, calibration: object, splits: Splits) -> Calibration:
    """A config's calibration, or else the model's own, with these split points in it."""
    found = ModelSettings.find(pipe, find_denoiser(pipe)[0], calibration).calibration
    points = {kind: int(split["index"]) for kind, split in splits.items()}
    return replace(found or Calibration(model_name(pipe), ()), split_points=points)
