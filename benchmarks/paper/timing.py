"""Seconds of a table's methods on CPU ranks, each pinned to a core, in turns: as `hybridiff bench` measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hybridiff.evaluation.strategy_spec import parse_strategy
from hybridiff.evaluation.timing.comparison import Comparison
from hybridiff.evaluation.timing.contenders import SERIAL, Contender
from hybridiff.evaluation.timing.turns import EngineSet
from hybridiff.evaluation.workload import Workload
from hybridiff.utils.prompts import Prompt

from .rows import Row

TIMED = ("seconds", "speedup_whole", "denoising_seconds", "speedup", "ideal_speedup", "rho")
"""What is kept of a row of `Comparison.measure`."""

AT_ONCE = 4
"""Methods whose engines are open together with that of serial: the model is once in the memory of each rank."""


def measure_seconds(
    workload: Workload,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    repeats: int,
    on_turn: Callable[[str, int], None] = lambda name, repeat: None,
) -> dict[str, dict[str, float]]:
    """What each setting takes beside serial in the same turns, by setting: `TIMED`, ready for JSON.

    Args:
        workload: The model and how it is called.
        rows: Of this model, one image at once.
        prompts: With seeds.
        repeats: Timed generations of each prompt.
        on_turn: See `Comparison.measure`.
    """
    named = [Contender(row.setting, row.devices, parse_strategy(row.setting, row.devices)) for row in rows]
    others = [one for one in named if one.config != SERIAL.config]
    measured: dict[str, dict[str, Any]] = {}
    for start in range(0, len(others), AT_ONCE):
        contenders = [SERIAL, *others[start : start + AT_ONCE]]
        ways = {one.name: (one.devices, one.config) for one in contenders}
        comparison = Comparison(contenders, prompts, workload.call, repeats, has_fidelity=False)
        with EngineSet[str](workload.model, ways, device="cpu") as engines:
            measured = {row["strategy"]: row for row in comparison.measure(engines, on_turn)} | measured
    return {setting: {name: round(row[name], 4) for name in TIMED} for setting, row in measured.items()}
