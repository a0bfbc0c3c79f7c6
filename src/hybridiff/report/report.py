"""What a run did: one record per step, and the report of the whole."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from ..denoiser.layout import GuidanceLayout
from ..schedule.kinds import Phase, StepKind
from .speedup import BRANCH_EACH, RowPartition, StageCosts, ideal_speedup
from .timeline import Span


def _finite(value: float | None) -> float | None:
    """JSON has no number for what is not one."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class StepRecord:
    """One denoising step, even where the denoiser is called twice in it.

    Attributes:
        index: Step, from 0.
        phase: The phase of the generation that the step belongs to.
        kind: How the ranks shared the step.
        discrepancy: `M` of the step (see `guidance.discrepancy`); None without guidance.
        drift: How far the predictions moved since the full step before (see `guidance.drift`); None where not measured.
        seconds: Wall time from the end of the step before to the end of this one.
        bytes_by_purpose: Bytes put on the wire by all ranks together, by what they were for.
        estimated: Fidelity of the worst image in dB, as estimated after a full step; None where nothing is promised.
        extra_evaluations: Evaluations of one branch beside the guided one (skip-layer guidance of SD3).
        branches: Guidance branches of the step; 1 where guidance was off.
    """

    index: int
    phase: Phase
    kind: StepKind
    discrepancy: float | None
    seconds: float
    bytes_by_purpose: dict[str, int]
    drift: float | None = None
    estimated: float | None = None
    extra_evaluations: int = 0
    branches: int = 2

    @property
    def bytes(self) -> int:
        """Bytes put on the wire in this step, by all ranks together."""
        return sum(self.bytes_by_purpose.values())

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data, ready for JSON; an estimate and extra evaluations where there were any."""
        extra: dict[str, Any] = {"extra_evaluations": self.extra_evaluations} if self.extra_evaluations else {}
        if self.estimated is not None:
            extra["estimated"] = self.estimated
        return {
            "index": self.index,
            "phase": self.phase.value,
            "kind": self.kind.value,
            "branches": self.branches,
            "discrepancy": _finite(self.discrepancy),
            "drift": _finite(self.drift),
            "seconds": self.seconds,
            "bytes": self.bytes,
            "bytes_by_purpose": self.bytes_by_purpose,
            **extra,
        }


@dataclass
class RunReport:
    """One call of a parallel pipeline.

    Attributes:
        strategy: Name of the strategy that ran.
        devices: Number of ranks.
        tau1: Last step before the parallel phase, None where there was none; of the steps since guidance began.
        tau2: Last step of the parallel phase, likewise.
        seconds: Wall time of the whole call, text encoding and decoding included.
        parts: Seconds of its parts: encoding of text and pictures, denoising, decoding; empty where it had no step. Who
            writes what was made adds `saving`, which `seconds` does not count.
        peak_memory: Bytes that the process of each rank has had at most so far: allocated on its GPU, or resident on a
            CPU; a single number where one process plays all ranks.
        steps: One record per step.
        notes: Sentences the user should read: what was not done, and why.
        stages: The split in force and its measured costs; empty where the network was not split.
        partition: How the rows of guided steps were shared; None where none was partitioned.
        shards: What it costs that ranks share an image, in seconds and bytes; empty where it was not measured (trace).
        layout: Where the branches are in the calls of a step; None where it is asked anew at every step.
        fidelity: What was promised and what is estimated of the worst image, in dB; empty where nothing was promised.
        spans: What each rank did when, where a trace was asked for.
        ideal_is_known: Whether the schedule tells all work that was left out.
    """

    strategy: str
    devices: int
    tau1: int | None = None
    tau2: int | None = None
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    peak_memory: list[int] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stages: dict[str, Any] = field(default_factory=dict)
    partition: RowPartition | None = None
    shards: dict[str, Any] = field(default_factory=dict)
    layout: GuidanceLayout | None = None
    fidelity: dict[str, float] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list, repr=False)
    ideal_is_known: bool = True

    @property
    def branches(self) -> int:
        """Most guidance branches of a step; 1 without guidance."""
        return max((step.branches for step in self.steps), default=1)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each of the parts in all of them, from 0 to 1."""
        whole = sum(self.parts.values())
        return {part: seconds / whole for part, seconds in self.parts.items()}

    @property
    def phases(self) -> dict[str, int]:
        """Number of steps in each phase."""
        return {phase.value: sum(step.phase is phase for step in self.steps) for phase in Phase}

    @property
    def kinds(self) -> dict[str, int]:
        """Number of steps of each kind that occurred."""
        counts = Counter(step.kind for step in self.steps)
        return {kind.value: counts[kind] for kind in StepKind if counts[kind]}

    @property
    def schedule(self) -> str:
        """One letter per step: f(ull), p(ipelined), r(euse), c(ached), a(head)."""
        return "".join(step.kind.value[0] for step in self.steps)

    @property
    def bytes_by_purpose(self) -> dict[str, int]:
        """Bytes put on the wire in all steps by all ranks together, by what they were for."""
        total: Counter[str] = Counter()
        for step in self.steps:
            total.update(step.bytes_by_purpose)
        return dict(total)

    @property
    def ideal_speedup(self) -> float | None:
        """Serial time over the critical path of this schedule, from stage costs measured alone; None if serial.

        None, too, where the schedule does not tell it.
        """
        return self.ideal_at(None) if self.ideal_is_known else None

    def ideal_at(self, serial_step: float | None) -> float | None:
        """That of the schedule where a step on one device costs so many evaluations of one branch (rho)."""
        is_shared = self.partition is not None or any(step.kind is not StepKind.FULL for step in self.steps)
        is_guided = self.branches > 1
        if self.strategy == "serial" or not self.steps or not (is_guided or is_shared):
            return None
        kinds = [step.kind for step in self.steps if step.branches == self.branches]
        unguided = [step.kind for step in self.steps if step.branches < self.branches]
        extra = sum(step.extra_evaluations for step in self.steps)
        alone = RowPartition(self.branches, self.branches, branches=self.branches)
        single = alone if self.devices == 1 or self.branches == 1 else BRANCH_EACH
        costs, partition = StageCosts.of(self.stages, self.shards), self.partition or single
        return ideal_speedup(kinds, costs, partition, serial_step, unguided, extra, self.shards.get("share"))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, ready for JSON."""
        return {
            "strategy": self.strategy,
            "devices": self.devices,
            "tau1": self.tau1,
            "tau2": self.tau2,
            "seconds": self.seconds,
            "parts": self.parts,
            "shares": self.shares,
            "peak_memory": self.peak_memory,
            "ideal_speedup": self.ideal_speedup,
            "phases": self.phases,
            "kinds": self.kinds,
            "bytes_by_purpose": self.bytes_by_purpose,
            "stages": self.stages,
            "layout": asdict(self.layout) if self.layout else None,
            "partition": asdict(self.partition) if self.partition else None,
            "shards": self.shards,
            "fidelity": self.fidelity,
            "notes": self.notes,
            "steps": [step.to_dict() for step in self.steps],
        }

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


def parts_of_call(begin: float, first_call: float, last_step: float, end: float) -> dict[str, float]:
    """Seconds of the parts of a call (`RunReport.parts`).

    Args:
        begin: When it began.
        first_call: When the denoiser was called first.
        last_step: When the last step ended.
        end: When the call ended.
    """
    return {"encoding": first_call - begin, "denoising": last_step - first_call, "decoding": end - last_step}


def peak_memory(device: Any) -> int:
    """Bytes that this process has had at most so far (see `RunReport.peak_memory`); 0 where no one knows."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
