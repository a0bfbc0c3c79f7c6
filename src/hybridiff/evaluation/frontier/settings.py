"""Ways to generate that can be compared, each under a name."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config import ParallelConfig, PublishedSettings, quality_value
from ...denoiser.adapters import find_denoiser
from ...models.schedulers import exchanged_scheduler
from ...schedule.calibration import Calibration
from ...schedule.presets import GuidedSettings, ModelSettings
from ...strategies.offered import find_strategy
from ...strategies.published.presets import choose_settings
from ..simulation import SimulatedPipeline, Splits


@dataclass(frozen=True)
class Setting:
    """A way to generate, under a name.

    Attributes:
        method: What it belongs to, such as `published`, `cached`, `reuse`.
        label: What sets it apart within the method.
        config: How the ranks would work together; it is simulated.
        steps: Number of denoising steps, where it is not that of the reference.
        scheduler: Name of the scheduler (see `schedulers.SCHEDULERS`), where it is not that of the reference.
    """

    method: str
    label: str
    config: ParallelConfig
    steps: int | None = None
    scheduler: str | None = None

    @property
    def name(self) -> tuple[str, str]:
        """Method and label: what one study has one row for."""
        return self.method, self.label

    @property
    def is_adaptive(self) -> bool:
        """Whether its schedule depends on what is generated."""
        if self.config.strategy == "published":
            return not _cap_decides(self.config.published)
        return self.config.strategy == "hybrid" and self.config.full_steps is None

    def describe(self, pipe: Any, steps: int) -> dict[str, Any]:
        """What tells this setting from any other, the thresholds that it takes from elsewhere included; for JSON.

        Args:
            pipe: The stock pipeline.
            steps: The reference's number of steps.

        Raises:
            UsageError: the setting does not fit the number of steps, or the scheduler the model.
        """
        steps, defaults = self.steps or steps, ParallelConfig().to_dict()
        own = {name: value for name, value in self.config.to_dict().items() if value != defaults[name]}
        # Files from before settings had schedulers have no such entry.
        scheduler = {} if self.scheduler is None else {"scheduler": self.scheduler}
        with exchanged_scheduler(pipe, self.scheduler):
            thresholds = _thresholds(self.config, pipe, steps)
        return scheduler | {
            "method": self.method,
            "label": self.label,
            "steps": steps,
            "config": {name: own[name] for name in own if name not in ("simulate", "calibration")},
            "thresholds": thresholds,
        }

    def calibrated(self, path: str) -> Setting:
        """With the thresholds in a file of `hybridiff calibrate`, where it takes any and brings none.

        Raises:
            UsageError: the file cannot be read.
        """
        if self.config.strategy not in ("hybrid", "published") or self.config.calibration is not None:
            return self
        return replace(self, config=replace(self.config, calibration=Calibration.read(Path(path).expanduser())))

    def attach(self, pipe: Any, call: dict[str, Any], splits: Splits | None) -> Any:
        """A stock pipeline made to generate that way: a context, callable, with a `summary` of its last call.

        Args:
            pipe: The stock pipeline.
            call: Arguments of every call but the prompts.
            splits: Where the network is split; as the strategies choose unless given.
        """
        return SimulatedPipeline(pipe, self.config, splits, self.scheduler)


def guided(step_kind: str, tolerance: float) -> Setting:
    """Guided switching at a tolerance."""
    return Setting(
        step_kind, f"tolerance {tolerance:g}", ParallelConfig("hybrid", step_kind=step_kind, tolerance=tolerance)
    )


def _cap_decides(published: PublishedSettings) -> bool:
    """Whether the parallel phase starts at the cap whatever the discrepancy: before a slope can be taken."""
    cap, window = published.tau_cap, published.slope_window
    return cap is not None and window is not None and cap <= window


def _thresholds(config: ParallelConfig, pipe: Any, steps: int) -> dict[str, Any]:
    scheduler = copy.copy(pipe.scheduler)
    scheduler.num_inference_steps = steps  # as the call will set it, whatever ran before
    settings = ModelSettings.find(pipe, find_denoiser(pipe)[0], config.calibration)
    find_strategy(config.strategy).check_steps(config, settings, scheduler, steps)
    if config.strategy == "published":
        return choose_settings(config, settings, scheduler, steps).to_dict()
    if config.strategy != "hybrid":
        return {}
    evaluations = steps * getattr(scheduler, "order", 1)
    guided = GuidedSettings.choose(config, settings.entry(scheduler, steps), evaluations)
    found: dict[str, Any] = {"step_kind": guided.step_kind.value}
    if guided.fidelity is not None:
        return found | {"fidelity": guided.fidelity, "longest": guided.longest}
    if config.full_steps is not None or quality_value(config.quality) == 1.0:
        return found
    return found | {"tolerance": guided.tolerance, "longest": guided.longest}
