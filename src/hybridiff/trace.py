"""What a run did: one record a step, and the report of the whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .switching import Phase


@dataclass(frozen=True)
class StepRecord:
    """One denoising step, even where the denoiser is called twice in it.

    Attributes:
        index: Step, from 0.
        phase: How the ranks shared the step.
        discrepancy: `M` of the step (see `guidance.discrepancy`); None without guidance.
        seconds: Wall time from the end of the step before to the end of this one.
        bytes_by_purpose: Bytes put on the wire by all ranks together, by what they were for.
    """

    index: int
    phase: Phase
    discrepancy: float | None
    seconds: float
    bytes_by_purpose: dict[str, int]

    @property
    def bytes(self) -> int:
        """Bytes put on the wire in this step, by all ranks together."""
        return sum(self.bytes_by_purpose.values())

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data, ready for JSON."""
        return {
            "index": self.index,
            "phase": self.phase.value,
            "discrepancy": self.discrepancy,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "bytes_by_purpose": self.bytes_by_purpose,
        }


@dataclass
class RunReport:
    """One call of a parallel pipeline.

    Attributes:
        strategy: Name of the strategy that ran.
        devices: Number of ranks.
        tau1: Last step before the parallel stage, None where there was none.
        tau2: Last step of the parallel stage, None where there was none.
        seconds: Wall time of the whole call, text encoding and decoding included.
        steps: One record a step.
        notes: Sentences the user should read: what was not done, and why.
    """

    strategy: str
    devices: int
    tau1: int | None = None
    tau2: int | None = None
    seconds: float = 0.0
    steps: list[StepRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return {
            "strategy": self.strategy,
            "devices": self.devices,
            "tau1": self.tau1,
            "tau2": self.tau2,
            "seconds": self.seconds,
            "notes": self.notes,
            "steps": [step.to_dict() for step in self.steps],
        }

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)
