"""What holds for a model: its calibration, where it has one, and the presets of its family; found once, handed down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import REFERENCE_STEPS, ParallelConfig, PublishedSettings, quality_fidelity, quality_value
from ..denoiser.adapters import DenoiserAdapter
from ..errors import UsageError
from ..models import tiny
from ..models.schedulers import scheduler_name
from ..numerics.interpolation import interpolate
from .calibration import Calibration, Entry
from .kinds import StepKind

_TOLERANCES = ((0.0, 0.25), (0.25, 0.14), (0.5, 0.085), (0.75, 0.045), (0.95, 0.02), (1.0, 0.0))
"""Tolerances of reuse steps for models that are not calibrated: what suits both embedded models roughly."""

_LONGEST = 6
"""Largest distance of full steps under the guided rule, for 50 steps."""


@dataclass(frozen=True)
class ModelSettings:
    """What holds for one model.

    Attributes:
        model: Last part of the path or hub id that it was loaded from; empty where the pipeline does not know.
        calibration: Its thresholds, None where it has none.
        published: Settings of the published rule for its family, for 50 steps.
        reuse_share: Work of the outer stage that reuse steps aim at, as a share of the whole.
        decoder_gain: Error of decoded images per error of latents (`decoder.decoder_gain`); only a promise needs it.
    """

    model: str
    calibration: Calibration | None
    published: PublishedSettings
    reuse_share: float
    decoder_gain: float = 1.0

    @classmethod
    def find(cls, pipe: Any, adapter: DenoiserAdapter, calibration: Any = None) -> ModelSettings:
        """Find what holds for a pipeline; reads files.

        Args:
            pipe: The pipeline.
            adapter: What is known of its denoiser's family.
            calibration: See `ParallelConfig.calibration`.

        Raises:
            UsageError: the calibration cannot be read.
        """
        return cls(model_name(pipe), _calibration(pipe, calibration), adapter.published, adapter.reuse_share)

    def describe(self) -> str:
        """All of it that decides images, as text: ranks must have the same."""
        calibration = "none" if self.calibration is None else self.calibration.describe()
        return f"{self.published}, {self.reuse_share}, calibration {calibration}"

    def entry(self, scheduler: Any, steps: int) -> Entry | None:
        """The calibration for a scheduler and a number of steps, or the nearest one; None where there is none."""
        if self.calibration is None or not self.calibration.entries:
            return None
        return self.calibration.nearest(scheduler_name(scheduler), steps)

    def split_point(self, kind: StepKind) -> int | None:
        """Index of the split point for a kind of steps, where a calibration says so."""
        return None if self.calibration is None else self.calibration.split_points.get(kind.value)

    def may_reuse(self, config: ParallelConfig) -> bool:
        """Whether some call may have reuse steps, whatever the scheduler and the number of steps."""
        return any(GuidedSettings.choose_kind(config, entry) is StepKind.REUSE for entry in self._entries)

    def may_promise(self, config: ParallelConfig) -> bool:
        """Whether some call may keep a promise, likewise."""
        promised = (GuidedSettings.choose(config, entry, REFERENCE_STEPS).fidelity for entry in self._entries)
        return config.strategy == "hybrid" and any(promised)

    @property
    def _entries(self) -> tuple[Entry | None, ...]:
        """All that can be in force."""
        return (None,) if self.calibration is None else self.calibration.entries or (None,)


@dataclass(frozen=True)
class GuidedSettings:
    """Thresholds of `hybrid` for one call.

    Attributes:
        step_kind: Kind of the steps between full ones.
        tolerance: Drift that a step may have since the last full one.
        longest: Largest distance of full steps.
        fidelity: What is promised, in dB; None where the tolerance holds.
    """

    step_kind: StepKind
    tolerance: float
    longest: int
    fidelity: float | None = None

    @classmethod
    def choose(cls, config: ParallelConfig, entry: Entry | None, steps: int) -> GuidedSettings:
        """The user's own thresholds, and the calibration's where there are none.

        A quality is a fidelity: where nothing was calibrated, it is promised and kept by measuring.

        Args:
            config: What the user asked for.
            entry: The calibration, None where there is none.
            steps: Number of steps of the whole way from noise to image.
        """
        kind, tolerance = cls.choose_kind(config, entry), config.tolerance
        if tolerance is None:
            quality = quality_value(config.quality)
            tolerance = interpolate(_TOLERANCES, quality) if entry is None else entry.tolerance(quality, kind.value)
        longest = scaled_steps(_LONGEST, steps, least=2)
        return cls(kind, tolerance, longest, cls._promised(config, entry, kind))

    @staticmethod
    def _promised(config: ParallelConfig, entry: Entry | None, kind: StepKind) -> float | None:
        """A fidelity that was asked for, or the one that a quality stands for where nothing else tells the schedule."""
        if config.fidelity is not None:
            return config.fidelity
        quality = quality_value(config.quality)
        has_schedule = config.tolerance is not None or config.full_steps is not None
        if has_schedule or entry is not None or kind is not StepKind.CACHED or quality == 1.0:
            return None
        return quality_fidelity(quality)

    @staticmethod
    def choose_kind(config: ParallelConfig, entry: Entry | None) -> StepKind:
        """What the steps between full ones are: as the user says, or as was measured for the quality."""
        if config.step_kind is not None or config.fidelity is not None:
            return StepKind(config.step_kind or "cached")
        quality = quality_value(config.quality)
        if entry is None or quality == 1.0:  # where all steps are full, nothing has to be prepared
            return StepKind.CACHED
        return StepKind(entry.band(quality).step_kind)


def model_name(pipe: Any) -> str:
    """The last part of the path or hub id that a pipeline was loaded from; empty where it does not know."""
    return _path(pipe).name


def scaled_steps(steps_of_reference: int, steps: int, least: int = 1) -> int:
    """A number of steps given for `REFERENCE_STEPS`, for another number of steps."""
    return max(least, round(steps_of_reference * steps / REFERENCE_STEPS))


def _path(pipe: Any) -> Path:
    return Path(str(pipe.config.get("_name_or_path") or ""))


def _calibration(pipe: Any, given: Any) -> Calibration | None:
    if isinstance(given, Calibration):
        return given
    if isinstance(given, (str, Path)):
        return Calibration.read(Path(given).expanduser())
    if given is not None:
        raise UsageError(f"calibration must be the path of a file or a Calibration, got {given!r}")
    is_embedded = _path(pipe) in map(tiny.folder, tiny.EMBEDDED)  # another folder may be called alike
    return Calibration.read(_path(pipe) / "calibration.json") if is_embedded else None
