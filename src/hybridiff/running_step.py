"""A step of a pipeline call while it runs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from .distributed.reading import Reading
from .report.report import StepRecord
from .schedule.kinds import Phase, StepKind


@dataclass
class RunningStep:
    """A step that runs, or has run; what was measured of it may still be on its way."""

    index: int
    started: float
    phase: Phase = Phase.WARM_UP
    kind: StepKind = StepKind.FULL
    calls: int = 0  # of the denoiser
    answered: bool = False  # whether it had its guided evaluation
    extra: int = 0  # evaluations after that one
    reading: Reading | None = None
    seconds: float = 0.0
    sent: Counter[str] | None = None
    estimated: float | None = None  # fidelity in dB
    branches: int = 1

    def record(self) -> StepRecord:
        measured = dict(zip(("discrepancy", "drift"), self.reading.values() if self.reading else (), strict=False))
        drift = measured.get("drift", math.nan)
        return StepRecord(
            index=self.index,
            phase=self.phase,
            kind=self.kind,
            discrepancy=measured.get("discrepancy") if self.branches > 1 else None,
            drift=drift if math.isfinite(drift) else None,
            seconds=self.seconds,
            bytes_by_purpose=dict(self.sent or {}),
            estimated=self.estimated,
            extra_evaluations=self.extra,
            branches=self.branches,
        )
