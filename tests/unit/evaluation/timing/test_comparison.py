"""Rows of a comparison: medians, rho, ideals and efficiency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridiff import ParallelConfig
from hybridiff.evaluation.timing.charts import write_charts
from hybridiff.evaluation.timing.comparison import ONE_BRANCH, Comparison, make_rows, unguided
from hybridiff.evaluation.timing.contenders import SERIAL, Contender, parse_contenders
from hybridiff.evaluation.timing.page import format_comparison, format_page
from hybridiff.launch.protocol import Generation
from hybridiff.report.speedup import BRANCH_EACH
from hybridiff.report.timeline import Span
from hybridiff.schedule.kinds import StepKind
from hybridiff.utils.prompts import Prompt
from support.reports import report

FULL, CACHED = StepKind.FULL, StepKind.CACHED
BLACK, GRAY = np.zeros((16, 16, 3)), np.full((16, 16, 3), 0.1)


def made(seconds: float, kinds: list[StepKind] | None = None, image: Any = BLACK, **fields: Any) -> Generation:
    """A generation of four steps that took so long, and half a second beside."""
    kinds = kinds or [FULL] * 4
    parts = {"encoding": 0.25, "denoising": seconds, "decoding": 0.25}
    told = report([0.1] * len(kinds), kinds=kinds, seconds=seconds + 0.5, parts=parts, **fields)
    return Generation([image], told, 0)


def turns() -> dict[str, list[list[Generation]]]:
    """Serial takes 8 s, one branch 5 (rho 1.6), cfg 5.5, hybrid with half of the steps 2.6 and 4.2 alone."""
    spans = [Span(rank, "wait: gather the predictions", "message", 0.0, 0.1 * (rank + 1)) for rank in (0, 1)]
    half = [FULL, CACHED, FULL, CACHED]
    return {
        "serial on 1": [[made(seconds, strategy="serial", devices=1)] for seconds in (7.0, 8.0, 9.0)],
        "cfg on 2": [[made(5.5, partition=BRANCH_EACH, spans=spans)]] * 3,
        "hybrid on 2": [[made(2.6, half, GRAY, strategy="hybrid", partition=BRANCH_EACH, spans=spans)]] * 3,
        "hybrid on 1": [[made(4.2, half, GRAY, strategy="hybrid", devices=1)]] * 3,
        ONE_BRANCH: [[made(seconds, strategy="serial", devices=1)] for seconds in (5.0, 4.0, 6.0)],
    }


def rows(has_fidelity: bool = True) -> list[dict[str, Any]]:
    return make_rows(parse_contenders("cfg,hybrid", 2), turns(), has_fidelity)


def test_speedups_are_against_serial_and_efficiency_against_the_ideal_at_rho() -> None:
    serial, cfg, hybrid, alone = rows()
    assert serial["rho"] == pytest.approx(1.6)
    assert [row["ideal_speedup"] for row in (serial, cfg, hybrid, alone)] == pytest.approx([1.0, 1.6, 3.2, 2.0])
    assert [row["speedup"] for row in (serial, cfg, hybrid, alone)] == pytest.approx([1.0, 8 / 5.5, 8 / 2.6, 8 / 4.2])
    assert cfg["efficiency"] == pytest.approx((8 / 5.5) / 1.6)
    assert cfg["speedup_whole"] == pytest.approx(8.5 / 6.0)
    assert (serial["seconds"], serial["denoising_seconds"]) == (8.5, 8.0)
    assert serial["spread"]["denoising_seconds"] == {"median": 8.0, "low": 7.5, "high": 8.5, "least": 7.0, "most": 9.0}


def test_costs_are_those_of_one_generation() -> None:
    serial, cfg, hybrid, _ = rows()
    assert hybrid["steps"] == {"full": 2, "cached": 2}
    assert hybrid["schedules"] == ["fcfc"]
    assert cfg["bytes_by_purpose"] == {"prediction": 160}
    assert cfg["messages"] == {"gather the predictions": 1}
    assert cfg["waiting_seconds"] == pytest.approx([0.1, 0.2])
    assert "messages" not in serial


def test_fidelity_is_against_serial_and_none_where_weights_are_random() -> None:
    _, cfg, hybrid, _ = rows()
    assert cfg["psnr"] == 100.0
    assert hybrid["psnr"] == pytest.approx(20.0)
    assert not any({"psnr", "ssim", "lpips"} & row.keys() for row in rows(has_fidelity=False))


def test_several_prompts_count_as_one_after_the_other() -> None:
    """The ideal of two generations is the serial time of both over the ideal time of both."""
    two = {name: [[turn[0], turn[0]] for turn in each] for name, each in turns().items()}
    second = made(3.6, [FULL, FULL, FULL, CACHED], strategy="hybrid", partition=BRANCH_EACH)
    two["hybrid on 2"] = [[turn[0], second] for turn in two["hybrid on 2"]]
    hybrid = make_rows(parse_contenders("cfg,hybrid", 2), two)[2]
    assert hybrid["denoising_seconds"] == pytest.approx(3.1)
    assert hybrid["ideal_speedup"] == pytest.approx(1.6 * 8 / 5)
    assert hybrid["steps"] == {"full": 2.5, "cached": 1.5}


@pytest.mark.parametrize(
    ("call", "name"), [({"guidance_scale": 5.0}, "guidance_scale"), ({"true_cfg_scale": 4.0}, "true_cfg_scale")]
)
def test_guidance_is_turned_off_by_its_own_argument(call: dict[str, Any], name: str) -> None:
    assert unguided(call) == {name: 1.0}


class FakeEngines:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float, int]] = []

    def generate(self, key: str, prompt: str, *, seed: int, guidance_scale: float, **call: Any) -> Generation:
        assert call["output_type"] == "np"
        self.asked.append((key, prompt, guidance_scale, seed))
        return made(1.0, strategy="serial" if key == SERIAL.name else "cfg")


def test_all_take_turns_on_the_same_prompts_after_a_warm_up() -> None:
    engines, told = FakeEngines(), list[tuple[str, int]]()
    contenders = [SERIAL, Contender("cfg", 2, ParallelConfig())]
    comparison = Comparison(contenders, [Prompt("a", 3), Prompt("b", 4)], {"guidance_scale": 5.0}, repeats=2)
    comparison.measure(engines, lambda name, repeat: told.append((name, repeat)))  # type: ignore[arg-type]
    warm = [("serial on 1", "a", 5.0, 3), ("cfg on 2", "a", 5.0, 3), ("serial on 1", "a", 1.0, 3)]
    turn = [(key, prompt, scale, seed) for key, _, scale, _ in warm for prompt, seed in (("a", 3), ("b", 4))]
    assert engines.asked == [*warm, *turn, *turn]
    names = ["serial on 1", "cfg on 2", ONE_BRANCH]
    assert told == [(name, repeat) for repeat in (-1, 0, 1) for name in names]


def content(found: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    run = {"model": "tiny-sd3", "num_inference_steps": 4, "prompts": [{}], "repeats": 3}
    return {"command": "hybridiff bench", "machine": {"device": "cpu"}, "run": run, "rows": found, "notes": []} | more


def test_tables_show_times_costs_and_fidelity() -> None:
    text = format_comparison(content(rows(), notes=["something to know"]))
    lines = text.splitlines()
    assert " ".join(lines[0].split()) == "strategy, rho 1.60 denoising speed-up ideal efficiency whole call speed-up"
    assert lines[3].split()[:7] == ["hybrid", "on", "2", "2.600", "(2.600-2.600)", "3.08x", "3.20x"]
    assert "2 full, 2 cached" in text
    assert "0.10 0.20" in text
    assert lines[-1] == "note: something to know"
    assert "PSNR" not in format_comparison(content(rows(has_fidelity=False)))


def test_resolutions_have_a_table_a_chart_and_what_the_prediction_was_worth(tmp_path: Path) -> None:
    measured = [row | {"resolution": side} for side in (512, 1024) for row in rows()]
    predicted = [
        {
            "strategy": row["strategy"],
            "devices": row["devices"],
            "resolution": 2048,
            "is_predicted": True,
            "speedup": 3.0,
        }
        for row in rows()
    ]
    checks = [
        {"strategy": "cfg", "devices": 2, "resolution": 1024, "measured": 1.5, "predicted": 1.4, "error": -0.0667}
    ]
    found = content(measured + predicted, prediction=checks)
    charts = write_charts(found, tmp_path, "bench")
    assert [path.name for path in charts] == ["bench-speed.png", "bench-fidelity.png", "bench-resolution.png"]
    assert all(path.stat().st_size > 5000 for path in charts)
    page = format_page(found, [path.name for path in charts])
    assert "| cfg on 2 | 1.45x | 1.45x | (3.00x) |" in page
    assert "speed-ups at 1024 are off by 6.7% at most (cfg on 2: 1.40x predicted, 1.50x measured)." in page
    assert "![bench-resolution.png](bench-resolution.png)" in page
    assert "## rho 1.60, 1024 x 1024" in page


def test_without_fidelity_there_is_no_scatter(tmp_path: Path) -> None:
    assert [path.name for path in write_charts(content(rows(has_fidelity=False)), tmp_path, "x")] == ["x-speed.png"]
