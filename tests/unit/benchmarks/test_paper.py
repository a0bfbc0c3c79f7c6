"""The paper's tables: pages say what was measured, by the arithmetic of ideal times, the paper's numbers beside."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cached_pipeline import Cache, CachedPipeline
from benchmarks.paper import __main__ as command
from benchmarks.paper import rows as measuring
from benchmarks.paper import timing
from benchmarks.paper.methods import BOTH, TABLES, Method, methods_of
from benchmarks.paper.page import format_page, format_tables, rows_of
from benchmarks.paper.reported import MODELS, REPORTED
from benchmarks.paper.rows import Row, find_best
from hybridiff.evaluation.frontier.generation import generate, generate_references
from hybridiff.evaluation.simulation import SimulatedPipeline
from hybridiff.evaluation.strategy_spec import parse_strategy
from hybridiff.evaluation.workload import Workload
from hybridiff.launch.protocol import Generation
from hybridiff.report.speedup import BRANCH_EACH
from hybridiff.utils.prompts import Prompt
from support.pipelines import build
from support.reports import report

RESULTS = Path(__file__).parents[3] / "docs" / "results"
CALL = {"num_inference_steps": 8, "guidance_scale": 5.0, "height": 32, "width": 32}


def recorded(table: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"paper-{table}.json").read_text())
    return content


def row(**fields: Any) -> Row:
    known = {
        "model": "tiny-sdxl",
        "method": "asyncdiff",
        "setting": "asyncdiff:stride=1:warm_up=1",
        "devices": 2,
        "images": 1,
        "ideal_speedup": 1.5,
        "one_device": 1.0,
        "bytes": 2**20,
        "bytes_of_all_modules": None,
        "psnr": 40.0,
        "worst": 30.0,
        "ssim": 0.9,
    }
    return Row(**known | fields)


def content_of(rows: list[Row], table: int = 1, **fields: Any) -> dict[str, Any]:
    known = {"command": "command", "table": table, "limit": 2, "steps": 50, "machine": {}, "repeats": 1, "timed": {}}
    return known | {"rows": [asdict(row) for row in rows]} | fields


@pytest.mark.parametrize("table", TABLES)
def test_the_page_says_what_was_measured(table: int) -> None:
    assert (RESULTS / f"paper-{table}.md").read_text() == format_page(recorded(table))


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_was_measured_as_in_the_paper(table: int) -> None:
    content = recorded(table)
    assert (content["steps"], content["limit"]) == (50, 8)
    expected = [
        (model, setting, method.devices)
        for model in BOTH
        for method in methods_of(table, 50)
        if model in method.models
        for setting in method.settings
    ]
    assert [(row.model, row.setting, row.devices) for row in rows_of(content)] == expected


@pytest.mark.parametrize("table", TABLES)
def test_ideal_times_are_those_of_the_arithmetic(table: int) -> None:
    content = recorded(table)
    steps = content["steps"]
    for row in rows_of(content):
        if row.setting in ("serial", "cfg", "cfg:shards=2"):
            assert (row.ideal_speedup, row.one_device) == (row.devices, 1.0)
            assert row.psnr > 99.0
        elif row.setting.startswith("published"):
            assert row.outer is not None
            assert row.inner is not None
            slower = max(row.outer, row.inner)
            expected = row.images * 2 * steps / (steps - row.pipelined + row.outer + (row.pipelined - 1) * slower)
            assert row.ideal_speedup == pytest.approx(expected, rel=2e-3)
            assert row.one_device == pytest.approx(2 * steps / (2 * steps - row.pipelined), abs=1e-3)
        elif row.setting.startswith("parastep"):
            warm_up = int(row.setting.partition("warm_up=")[2])
            times = warm_up + math.ceil((steps - warm_up) / row.devices)
            assert row.ideal_speedup == pytest.approx(steps / times, abs=1e-3)
            assert row.one_device == 1.0
        elif row.method == "taylorseer":  # both branches skip the same steps
            assert row.one_device == pytest.approx(row.ideal_speedup / 2, abs=1e-3)
        elif row.method == "first-block":  # each skips its own
            assert row.ideal_speedup / 2 < row.one_device < row.ideal_speedup


def test_pipelined_steps_are_those_of_the_ablation() -> None:
    published = [row.pipelined for row in rows_of(recorded(4)) if row.method.startswith("published")]
    assert published == 2 * [5, 10, 20, 30]


def test_every_number_of_the_paper_has_a_row() -> None:
    ours = {(model, m.key, m.devices) for table in TABLES for m in methods_of(table, 50) for model in m.models}
    assert {(model, *key) for model, known in REPORTED.items() for key in known} <= ours
    assert tuple(MODELS) == BOTH


def test_the_best_setting_for_each_speed_is_kept() -> None:
    fast, near = row(), row(ideal_speedup=1.2, psnr=50.0)
    worse, other = row(ideal_speedup=1.1, psnr=45.0), row(method="parastep", ideal_speedup=1.0, psnr=20.0)
    assert find_best([fast, worse, near, other]) == [fast, near, other]
    assert find_best([fast, replace(fast, setting="twin")]) == [fast, replace(fast, setting="twin")]


def test_the_papers_numbers_stand_beside_ours_and_what_was_left_out_is_named() -> None:
    worse = row(setting="asyncdiff:stride=1:warm_up=9", ideal_speedup=1.2, psnr=35.0, bytes_of_all_modules=2**23)
    page = format_page(content_of([row(), worse]))
    assert "| 1.50x | 1.00x | 1.00 | 40.0 / 30.0 dB | 0.9000 | 12.54 | 1.31x | 9.830 | 26.4 | 0.108 | 4.10 |" in page
    words = " ".join(page.split())
    assert "`asyncdiff:stride=1:warm_up=9` (tiny-sdxl, 1.20x, 35.0 dB)" in words
    assert "8.0 MiB in place of 1.00" in words
    assert "What cannot be compared:" in words


def test_ours_at_equal_speed_stands_beside_each_k() -> None:
    published = row(method="published-10", setting="published", ideal_speedup=2.2, tau1=(9, 12))
    hybrids = [
        row(method="hybrid", setting=f"hybrid:tolerance={speed}", ideal_speedup=speed, psnr=speed * 20)
        for speed in (2.0, 3.0, 2.5)
    ]
    (lines,) = format_tables(content_of([published, *hybrids], 4)).values()
    assert "| 10 | 2.20x | 1.00x | 9-12 | 40.0 / 30.0 dB | 0.9000 | `hybrid:tolerance=2.5` | 2.50x |" in lines
    assert lines.endswith("| 6.89 | 2.39x | 5.94 |")
    (lines,) = format_tables(content_of([replace(published, ideal_speedup=4.0)], 4)).values()
    assert "none is as fast" in lines


@pytest.mark.parametrize(
    ("setting", "cache"),
    [
        ("cached_cfg:threshold=0.5", Cache("first-block", 0.5)),
        ("cached_cfg:cache=taylorseer:interval=3", Cache("taylorseer", 3)),
        ("cached_cfg:cache=taylorseer:interval=3:order=2", Cache("taylorseer", 3, order=2)),
        ("cached_cfg", Cache("first-block", 0.1)),
    ],
)
def test_counting_networks_make_the_images_of_the_strategy(setting: str, cache: Cache) -> None:
    pipe, prompts = build("sd3"), [Prompt("a ring", seed=1)]
    config = parse_strategy(setting, 2)
    assert measuring._cache(config.settings) == cache
    with SimulatedPipeline(pipe, config) as parallel:
        ours = generate(parallel, prompts, CALL)[0]
    with CachedPipeline(pipe, cache, CALL) as counting:
        assert ours == pytest.approx(generate(counting, prompts, CALL)[0], abs=1e-5)
        assert counting.summary.ideal_speedup > 2.0


def test_a_cache_that_decides_for_each_branch_saves_more_on_one_device_than_half() -> None:
    workload, setting = Workload("sd3", build("sd3"), CALL), "cached_cfg:threshold=0.15"
    references = list(generate_references(workload.pipe, [Prompt("a ring", seed=1)], CALL))
    method = Method("first-block", "", 2, (setting,), models=("sd3",))
    (found,) = measuring.measure(workload, [method], references)
    with CachedPipeline(workload.pipe, Cache("first-block", 0.15), CALL) as counting:
        generate(counting, [references[0].prompt], CALL)
        assert found.one_device == pytest.approx(counting.one_device, abs=1e-3)
    assert found.one_device > found.ideal_speedup / 2 + 0.05


def test_one_command_makes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (
        Method("asyncdiff", "AsyncDiff, stride 1", 2, ("asyncdiff:warm_up=1",)),
        Method("taylorseer", "TaylorSeer, partitioned", 2, ("cached_cfg:cache=taylorseer:interval=2",)),
        Method("hybrid", "ours", 2, ("hybrid:full_steps=0-2,4,6,7",)),
    )
    monkeypatch.setattr(command, "methods_of", lambda table, steps: few)
    flags = ["--table", "1", "--limit", "1", "--num-inference-steps", "8", "--output", str(tmp_path)]
    command.main(flags)
    content = json.loads((tmp_path / "paper-1.json").read_text())
    rows = rows_of(content)
    assert [(row.model, row.method) for row in rows] == [(model, method.key) for model in BOTH for method in few]
    assert [(row.ideal_speedup, row.one_device) for row in rows if row.method == "hybrid"] == 2 * [(2.667, 1.333)]
    assert all(row.bytes > 0 for row in rows)
    assert content["command"] == " ".join(["python -m benchmarks.paper", *flags])
    assert (tmp_path / "paper-1.md").read_text() == format_page(content)
    assert capsys.readouterr().out == "\n\n".join(format_tables(content).values()) + "\n"


def test_one_method_is_measured_anew_and_other_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = (
        Method("asyncdiff", "AsyncDiff, stride 1", 2, ("asyncdiff:warm_up=1",)),
        Method("hybrid", "ours", 2, ("hybrid:full_steps=0-2,4", "hybrid:full_steps=0")),
    )
    monkeypatch.setattr(command, "methods_of", lambda table, steps: few)
    old = [
        row(model=model, method=method.key, setting=setting, psnr=1.0)
        for model in BOTH
        for method in few
        for setting in method.settings
    ]
    seconds = {one.setting: {"seconds": 1.0, "speedup_whole": 1.0, "rho": 1.5} for one in old}
    content = content_of(old, limit=1, steps=5, timed={model: dict(seconds) for model in BOTH})
    path = tmp_path / "paper-1.json"

    def measured_again(content: dict[str, Any]) -> dict[str, Any]:
        path.write_text(json.dumps(content))
        command.main(["--table", "1", "--only", "tiny-sd3/hybrid", "--output", str(tmp_path)])
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    found = measured_again(content)
    rows = rows_of(found)
    assert rows[:4] == old[:4]
    assert [(one.model, one.setting) for one in rows] == [(one.model, one.setting) for one in old]
    assert all(one.psnr != 1.0 for one in rows[4:])
    assert (found["command"], list(found["again"])) == ("command", ["tiny-sd3/hybrid"])
    assert "with the other rows as they were: tiny-sd3/hybrid (" in path.with_suffix(".md").read_text()
    assert found["timed"] == {"tiny-sdxl": seconds, "tiny-sd3": {"asyncdiff:warm_up=1": seconds["asyncdiff:warm_up=1"]}}
    found["timed"]["tiny-sd3"] = seconds
    assert measured_again(found)["timed"]["tiny-sd3"] == seconds, "they are of the same images"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--table", "2", "--limit", "3"], "--limit must be even, as two images share a batch on four devices; got 3"),
        (["--table", "1", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["--table", "4", "--measured"], "--measured is for table 1, on two devices; got --table 4"),
        (["--table", "3"], "invalid choice: 3"),
        (["--table", "2", "--only", "tiny-sdxl/first-block"], "got tiny-sdxl/first-block"),
    ],
)
def test_what_does_not_fit_is_refused(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(flags)
    assert sentence in capsys.readouterr().err


SECONDS = {"serial": 8.0, "cfg": 5.0}


class FakeEngines:
    """Generations that take as long as their strategy is told to."""

    def __init__(self, model: str, ways: Any, device: str) -> None:
        self.ways = ways

    def __class_getitem__(cls, key: Any) -> type[FakeEngines]:
        return cls

    def __enter__(self) -> FakeEngines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def generate(self, key: str, prompt: str, **call: Any) -> Generation:
        devices, config = self.ways[key]
        seconds = SECONDS[config.strategy] if call["guidance_scale"] > 1.0 else 4.0
        shared = {"partition": BRANCH_EACH} if devices > 1 else {}
        parts = {"encoding": 0.5, "denoising": seconds, "decoding": 0.5}
        told = report([0.1], strategy=config.strategy, devices=devices, seconds=seconds + 1.0, parts=parts, **shared)
        return Generation([], told, 0)


def test_seconds_are_measured_beside_serial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "EngineSet", FakeEngines)
    workload = Workload("tiny-sdxl", None, {"num_inference_steps": 1, "guidance_scale": 2.0})
    rows = [row(method="original", setting="serial", devices=1), row(method="partitioning", setting="cfg")]
    timed = timing.measure_seconds(workload, rows, [Prompt("a ring", seed=0)], repeats=2)
    assert list(timed) == ["serial", "cfg"]
    assert timed["cfg"] == {
        "seconds": 6.0,
        "speedup_whole": 1.5,
        "denoising_seconds": 5.0,
        "speedup": 1.6,
        "ideal_speedup": 2.0,
        "rho": 2.0,
    }
    page = format_page(content_of(rows, timed={"tiny-sdxl": timed}, machine={"device": "cpu"}))
    assert "| 6.00 | 1.50x |" in page
    assert "is 2.00 of tiny-sdxl. device cpu." in " ".join(page.split())
