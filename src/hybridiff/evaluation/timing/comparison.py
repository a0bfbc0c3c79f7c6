"""Strategies side by side in one run: the same model, prompts, seeds and devices, in turns."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ...launch.protocol import Generation
from ...report.report import RunReport
from ...report.speedup import mean_speedup
from ...utils.prompts import Prompt
from ..metrics import likeness
from ..tables import distinct
from .contenders import SERIAL, Contender
from .turns import EngineSet, Spread, take_turns

ONE_BRANCH = "one branch on 1"
"""The turn of the serial engine without guidance, whose steps evaluate one branch."""

Turns = list[list[Generation]]
"""Of one contender: for each repeat, what each prompt gave."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how often.

    Attributes:
        contenders: Serial on one device is the first.
        prompts: With seeds.
        call: Further arguments of every call.
        repeats: Timed generations of each prompt by each contender.
        has_fidelity: Whether images mean anything: not those of random weights.
    """

    contenders: Sequence[Contender]
    prompts: Sequence[Prompt]
    call: dict[str, Any]
    repeats: int
    has_fidelity: bool = True

    def measure(
        self, engines: EngineSet[str], on_turn: Callable[[str, int], None] = lambda name, repeat: None, **call: Any
    ) -> list[dict[str, Any]]:
        """Let all take turns, after a warm-up each; one row for each contender, ready for JSON.

        Args:
            engines: One by the name of each contender.
            on_turn: See `take_turns`; repeat -1 is the warm-up.
            call: More arguments, such as the size.
        """
        call = self.call | call
        calls = {contender.name: (contender.name, call) for contender in self.contenders}
        calls[ONE_BRANCH] = (SERIAL.name, unguided(call))
        for name, (engine, own) in calls.items():
            on_turn(name, -1)
            self._generate(engines, engine, own, self.prompts[:1])
        works = {name: partial(self._generate, engines, *own, self.prompts) for name, own in calls.items()}
        return make_rows(self.contenders, take_turns(works, self.repeats, on_turn), self.has_fidelity)

    def _generate(
        self, engines: EngineSet[str], name: str, call: Mapping[str, Any], prompts: Sequence[Prompt]
    ) -> list[Generation]:
        made = [
            engines.generate(name, prompt.prompt, seed=prompt.seed, **{**call, **prompt.arguments, "output_type": "np"})
            for prompt in prompts
        ]
        return made if self.has_fidelity else [replace(generation, images=None) for generation in made]


def unguided(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with guidance off."""
    scale = "true_cfg_scale" if "true_cfg_scale" in call else "guidance_scale"
    return {**call, scale: 1.0}


def make_rows(
    contenders: Sequence[Contender], turns: Mapping[str, Turns], has_fidelity: bool = True
) -> list[dict[str, Any]]:
    """What each contender took beside serial on one device; the ideal is that of its recorded schedules at rho.

    rho is the time of a step that evaluates both branches on one device over that of a step that evaluates one; both
    stem from the same turns. Seconds are medians over the repeats, of the mean over the prompts.
    """
    serial = turns[SERIAL.name]
    whole, denoising = seconds(serial), seconds(serial, "denoising")
    one_branch = seconds(turns[ONE_BRANCH], "denoising")
    rho = denoising.median / one_branch.median
    rows = []
    for contender in contenders:
        own = turns[contender.name]
        own_whole, own_denoising = seconds(own), seconds(own, "denoising")
        reports = [generation.report for generation in own[0]]
        speedup, ideal = denoising.median / own_denoising.median, mean_speedup(one.ideal_at(rho) for one in reports)
        row = {
            "strategy": contender.label,
            "devices": contender.devices,
            "speedup": speedup,
            "ideal_speedup": ideal,
            "efficiency": speedup / ideal,
            "rho": rho,
            "seconds": own_whole.median,
            "speedup_whole": whole.median / own_whole.median,
            "denoising_seconds": own_denoising.median,
            "spread": {
                "seconds": asdict(own_whole),
                "denoising_seconds": asdict(own_denoising),
                "one_branch_seconds": asdict(one_branch),
            },
            **_costs([generation.report for turn in own for generation in turn], contender.devices),
        }
        rows.append(row | (likeness(_images(own[0]), _images(serial[0])) if has_fidelity else {}))
    return rows


def seconds(turns: Turns, part: str | None = None) -> Spread:
    """Seconds of a call, or of a part of it, a prompt: over the repeats."""
    return Spread.of(
        [
            statistics.mean(
                generation.report.seconds if part is None else generation.report.parts[part] for generation in turn
            )
            for turn in turns
        ]
    )


def _costs(reports: Sequence[RunReport], devices: int) -> dict[str, Any]:
    """What a generation costs beside time, as means over several; waiting and messages where traces tell."""
    is_message = devices > 1  # alone, a rank hears nobody
    spans = [span for report in reports for span in report.spans if is_message and span.category == "message"]
    waiting = dict.fromkeys(range(devices), 0.0)
    for span in spans:
        waiting[span.rank] += span.seconds
    traced: dict[str, Any] = {}
    if any(report.spans for report in reports):
        what = Counter(span.name.removeprefix("wait: ") for span in spans if span.rank == 0)
        traced["messages"] = {name: count / len(reports) for name, count in what.items()}
        traced["waiting_seconds"] = [total / len(reports) for total in waiting.values()]
    return {
        "steps": _mean(report.kinds for report in reports),
        "schedules": sorted({report.schedule for report in reports}),
        "bytes_by_purpose": _mean(report.bytes_by_purpose for report in reports),
        **traced,
        "peak_memory": [max(of_rank) for of_rank in zip(*(report.peak_memory for report in reports), strict=True)],
        "notes": distinct(report.notes for report in reports),
    }


def _mean(counts: Any) -> dict[str, float]:
    every = list(counts)
    names = dict.fromkeys(name for count in every for name in count)
    return {name: statistics.mean(count.get(name, 0) for count in every) for name in names}


def _images(generations: Sequence[Generation]) -> list[Any]:
    return [image for generation in generations for image in generation.images]
