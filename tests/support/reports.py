"""Reports of runs that never ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridiff import Phase, RunReport, StepRecord
from hybridiff.schedule.kinds import StepKind


def report(
    discrepancies: Sequence[float | None],
    phases: Sequence[Phase] | None = None,
    kinds: Sequence[StepKind] | None = None,
    **fields: Any,
) -> RunReport:
    """A report with one step for each discrepancy, full and in the warm-up throughout unless told otherwise."""
    steps = [
        StepRecord(
            index=index,
            phase=phases[index] if phases else Phase.WARM_UP,
            kind=kinds[index] if kinds else StepKind.FULL,
            discrepancy=value,
            seconds=0.5,
            bytes_by_purpose={"prediction": 40},
        )
        for index, value in enumerate(discrepancies)
    ]
    return RunReport(**({"strategy": "cfg", "devices": 2, "seconds": 0.9} | fields), steps=steps)
