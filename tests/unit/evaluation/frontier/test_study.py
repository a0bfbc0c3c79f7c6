"""A frontier on disk: it goes on where it was stopped, and refuses to mix runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hybridiff import ParallelConfig, PublishedSettings
from hybridiff.errors import UsageError
from hybridiff.evaluation.frontier.chart import frontier_figure
from hybridiff.evaluation.frontier.generation import generate
from hybridiff.evaluation.frontier.grid import guided_models
from hybridiff.evaluation.frontier.page import format_markdown, format_study
from hybridiff.evaluation.frontier.rows import FrontierRow, ImageResult
from hybridiff.evaluation.frontier.settings import Setting
from hybridiff.evaluation.frontier.settings_file import read_settings
from hybridiff.evaluation.frontier.solvers import least_evaluations, solver_lines
from hybridiff.evaluation.frontier.study import Study, run_study
from hybridiff.evaluation.simulation import RunSummary
from hybridiff.utils.prompts import Prompt
from support.pipelines import build

CALL = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 32, "width": 32, "max_sequence_length": 12}
RUN = {"model": "random", "scheduler": "FlowMatchEulerDiscreteScheduler", "dtype": "float32", "prompts": [], **CALL}
PROMPTS = [Prompt("a red ring on a white background"), Prompt("a cross")]
EXACT = Setting("exact", "cfg", ParallelConfig("cfg"))
FEWER = Setting("fewer-steps", "2 steps", EXACT.config, steps=2)


def test_a_study_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    pipe, path = build("sd3"), tmp_path / "frontier.json"

    def stop_in_the_second_setting(what: str, done: int, total: int) -> None:
        assert total == 6
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(
            Study.open(path, RUN, {}), pipe, PROMPTS, [EXACT, FEWER], CALL, on_progress=stop_in_the_second_setting
        )
    resumed = Study.open(path, RUN, {})
    first = resumed.rows[0]
    assert [row["label"] for row in resumed.rows] == ["cfg"]
    assert resumed.reference == {"prompts": 2, "right": 0.0}
    told: list[tuple[str, int, int]] = []
    run_study(resumed, pipe, PROMPTS, [EXACT, FEWER], CALL, on_progress=lambda *progress: told.append(progress))
    assert told == [("one device", 1, 4), ("one device", 2, 4), ("fewer-steps", 3, 4), ("fewer-steps", 4, 4)]
    finished = Study.open(path, RUN, {})
    assert finished.rows[0] == first
    assert [row["label"] for row in finished.rows] == ["cfg", "2 steps"]
    run_study(finished, pipe, PROMPTS, [EXACT, FEWER], CALL, on_progress=lambda *progress: pytest.fail("all is there"))
    assert Study.open(path, RUN, {}, fresh=True).rows == []


def test_typical_schedules_are_found_once(tmp_path: Path) -> None:
    pipe, path = build("sd3"), tmp_path / "frontier.json"
    guided = guided_models()[-1:]
    told: list[str] = []
    for _ in range(2):
        study = Study.open(path, RUN, {})
        run_study(
            study,
            pipe,
            PROMPTS[:1],
            [],
            CALL,
            guided=guided,
            guided_prompts=[Prompt("a square")],
            on_progress=lambda what, done, total: told.append(f"{what} {done}/{total}"),
        )
    assert told == ["typical schedules 1/3", "one device 2/3", "typical 3/3"]
    found, description = study.typical[0]["full_steps"], guided[0].describe(pipe, 4)
    assert study.typical_of(description, [Prompt("a square", seed=0)]) == found
    assert study.typical_of(description, [Prompt("a ring")]) is None, "of other prompts another one may be typical"
    again = Study.open(path, RUN, {})
    again.forget(["exact"])
    assert again.typical == study.typical
    again.forget(["typical"])
    assert again.typical == again.rows == []
    (row,) = study.rows
    assert row["label"] == "as tolerance 0.14"
    assert row["config"]["full_steps"] == study.typical[0]["full_steps"]


def test_converged_images_outlive_a_study_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, path, run = build("sd3"), tmp_path / "study.json", RUN | {"converged_steps": 9}

    def stop_at_the_second_converged(what: str, done: int, total: int) -> None:
        assert total == 6
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(Study.open(path, run, {}), pipe, PROMPTS, [EXACT], CALL, on_progress=stop_at_the_second_converged)
    made: list[int] = []

    def counted(pipe: Any, prompts: Any, call: Any, *more: Any) -> Any:
        made.append(call["num_inference_steps"])
        return generate(pipe, prompts, call, *more)

    monkeypatch.setattr("hybridiff.evaluation.frontier.generation.generate", counted)
    resumed = Study.open(path, run, {})
    run_study(resumed, pipe, PROMPTS, [EXACT], CALL)
    assert made == [4, 4, 4, 4], "both were kept, the second before the bar was told"
    assert resumed.rows[0]["psnr_converged"] < 100.0
    with pytest.raises(UsageError, match="holds another run, with other converged_steps"):
        Study.open(path, RUN, {})
    assert list(path.with_suffix(".converged").iterdir())
    Study.open(path, run, {}, fresh=True)
    assert not list(path.with_suffix(".converged").iterdir()), "to start over means these too"


def test_a_method_can_be_measured_again(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    for setting in (EXACT, FEWER):
        study.add(described(setting), measured(setting))
    study.forget([])
    assert len(study.rows) == 2
    study.forget(["exact", "solvers"])
    assert [row["method"] for row in study.rows] == ["fewer-steps"]
    assert not study.has(described(EXACT))
    with pytest.raises(UsageError, match="unknown method 'fever-steps'; choose one of exact, fewer-steps"):
        study.forget(["fever-steps"])


def test_files_from_before_there_were_schedulers_go_on(tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    study = Study.open(path, RUN, {})
    study.add(EXACT.describe(build("sd3"), 4), measured(EXACT))
    study.rows[0] = {name: value for name, value in study.rows[0].items() if name != "evaluations"}
    study.save()
    old, pipe = Study.open(path, RUN, {}), build("sd3")
    other = Setting(EXACT.method, EXACT.label, EXACT.config, scheduler="flow-unipc")
    old.add(other.describe(pipe, 4) | {"label": "flow-unipc"}, measured(other))
    assert list(solver_lines(old.to_dict())) == ["FlowMatchEulerDiscrete", "UniPCMultistep"]
    assert least_evaluations(old.rows, "psnr") == [(3.0, 50.0)]
    assert old.has(EXACT.describe(pipe, 4))
    assert not old.has(other.describe(pipe, 4))
    assert "| exact | cfg | 2.00x | 50.0 dB |" in format_markdown(old)


def described(setting: Setting, **thresholds: Any) -> dict[str, Any]:
    return {
        "method": setting.method,
        "label": setting.label,
        "steps": 4,
        "config": {},
        "thresholds": thresholds,
    }


def measured(setting: Setting, speed: float = 2.0, psnr: float = 50.0) -> FrontierRow:
    return FrontierRow(setting, [ImageResult(psnr, None, None, RunSummary(speed, "fcff", 0, 1))])


def test_a_row_whose_thresholds_changed_is_measured_again(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    study.add(described(EXACT, tolerance=0.1), measured(EXACT, 2.0))
    assert study.has(described(EXACT, tolerance=0.1))
    assert not study.has(described(EXACT, tolerance=0.2))
    study.add(described(EXACT, tolerance=0.2), measured(EXACT, 3.0))
    assert [row["ideal_speedup"] for row in study.rows] == [3.0]


def test_runs_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    Study.open(path, RUN, {}).save()
    with pytest.raises(UsageError, match="holds another run, with other dtype, height; use another --output, or"):
        Study.open(path, RUN | {"dtype": "bfloat16", "height": 64}, {})
    path.write_text("{}")
    with pytest.raises(UsageError, match="is no frontier: its run, splits, reference, typical, rows cannot be used"):
        Study.open(path, RUN, {})
    path.write_text("[")
    with pytest.raises(UsageError, match="is no frontier: its content cannot be used"):
        Study.open(path, RUN, {})


SPLIT = {"index": 1, "outer": 0.5, "inner": 0.5}
SPLITS = {"pipelined": SPLIT, "reuse": SPLIT}


@pytest.mark.parametrize(
    "part",
    [
        {"run": ["sd3"]},
        {"splits": [1, 2]},
        {"reference": 3},
        {"typical": {}},
        {"rows": None},
    ],
    ids=str,
)
def test_a_file_with_malformed_parts_is_no_frontier(part: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    study = Study(path, RUN, {}, SPLITS, {"right": None}, [{"guided": {}, "full_steps": "0-2"}], [])
    path.write_text(json.dumps(study.to_dict()))
    assert Study.open(path, RUN, {}).splits == SPLITS
    path.write_text(json.dumps(study.to_dict() | part))
    (name,) = part
    with pytest.raises(UsageError, match=f"is no frontier: its {name} cannot be used; give another --output, or"):
        Study.open(path, RUN, {})


def test_two_settings_of_one_name_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    other = Setting(EXACT.method, EXACT.label, ParallelConfig("hybrid", tolerance=0.1))
    with pytest.raises(
        UsageError, match="2 settings have method 'exact' and label 'cfg'; give each a label of its own"
    ):
        run_study(study, None, PROMPTS, [EXACT, other], CALL)


def test_the_table_and_the_figure_show_every_row(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    guided = Setting("cached", "tolerance 0.1", ParallelConfig("hybrid", tolerance=0.1))
    published = Setting("published", "k 5, tau1 5", ParallelConfig("published"))
    own = Setting("mine", "a", guided.config)
    alone = Setting("mine", "b, 1 device", guided.config)
    plain, unknown = format_markdown(study), Setting("unknown", "c", EXACT.config)
    assert plain.endswith("full steps |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
    notes = RunSummary(math.nan, "ffff", notes=("nobody knows",))
    study.add(described(unknown), FrontierRow(unknown, [ImageResult(30.0, None, None, notes)]))
    study.add(described(alone) | {"config": {"devices": 1}}, measured(alone, 1.5, 41.0))
    for setting, speed, psnr in [(guided, 3.0, 40.0), (EXACT, 2.0, 100.0), (published, 2.1, 33.0), (own, 2.5, 44.0)]:
        study.add(described(setting), measured(setting, speed, psnr))
    runs = [RunSummary(speed, kinds, 0, 1) for speed, kinds in ((2.0, "ffff"), (3.0, "fcff"), (6.0, "fccf"))]
    row = FrontierRow(guided, [ImageResult(40.0, 0.9, True, run) for run in runs])
    assert row.ideal_speedup == pytest.approx(3.0), "of all images, one after the other"
    study.add(described(guided), row)
    lines = format_study(study).splitlines()
    assert " ".join(lines[0].split()) == "method setting speed-up PSNR worst tenth SSIM right full steps"
    assert lines[1].split()[-3:] == ["0.9000", "100%", "2-3-4"]
    assert lines[-2].split()[:3] == ["unknown", "c", "-"]
    assert lines[-1] == "note: unknown: nobody knows"
    assert lines[2].split() == ["exact", "cfg", "2.00x", "100.0", "dB", "100.0", "dB", "-", "-", "3"]
    page = format_markdown(study)
    assert page.startswith("# random, 4 steps, FlowMatchEulerDiscreteScheduler, float32, 0 prompts\n")
    assert "\n| exact | cfg | 2.00x | 100.0 dB | 100.0 dB | - | - | 3 |\n" in page
    assert "\n| cached |  |  | 40.0 |  |  |  |  |  |  |\n" in page, "at 3x"
    assert "\n| unknown | c | - | 30.0 dB |" in page
    assert page.endswith(" |\n\n- unknown: nobody knows.\n")
    assert "\n| mine |  | 44.0 |" in page, "what ran on one device does not count"
    (axes,) = frontier_figure(study.to_dict()).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:-1] == ["cached", "published", "exact", "mine", "mine, one device"]
    assert labels[-1] == "published at its best:\n2.10x, 33.0 dB"
    assert axes.lines[2].get_ydata()[0] == 72.0, "no higher, or there were no room for the others"


def test_the_page_has_what_was_measured_of_promises_and_solvers(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "study.json", RUN | {"num_inference_steps": 12, "converged_steps": 100}, {})
    promise = Setting("fidelity", "45 dB promised", ParallelConfig("hybrid", fidelity=45.0))
    other = Setting("solvers", "flow-unipc, 4 steps", EXACT.config, scheduler="flow-unipc")
    for setting, speed, estimated in ((EXACT, 2.0, None), (other, 2.5, None), (promise, 3.0, 47.0)):
        run = RunSummary(speed, "f" * round(24 / speed), 0, 1, estimated)
        known = {} if setting.scheduler is None else {"scheduler": setting.scheduler}
        config = {name: value for name, value in {"fidelity": setting.config.fidelity}.items() if value}
        row = FrontierRow(setting, [ImageResult(50.0, None, None, run, psnr_converged=44.0)])
        study.add(described(setting) | known | {"config": config}, row)
    page = format_markdown(study)
    assert "against the image that FlowMatchEulerDiscreteScheduler makes in 100 steps" in page
    assert "\n| 45 | 47.0 | 50.0 | 50.0 | 3.0 | 3.00x | 8 |\n" in page
    assert "(study-solvers.png)" in page
    assert "\n| evaluations | 8 | 10 | 12 |\n" in page
    assert "\n| FlowMatchEulerDiscrete |  |  | 44.0 |\n" in page
    assert "\n| UniPCMultistep |  | 44.0 |  |\n" in page
    assert "\n| hybrid on FlowMatchEulerDiscrete | 44.0 |  |  |\n" in page
    assert "| fidelity | 45 dB promised | 3.00x | 47.0 dB | 50.0 dB | 50.0 dB | 44.0 dB | 44.0 dB | - | - | 8 |" in page
    plain = format_markdown(Study.open(tmp_path / "none.json", RUN, {}))
    assert not any(title in plain for title in ("## Promises", "## Solvers", "Converged"))


def test_an_empty_study_can_be_measured(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    assert frontier_figure(study.to_dict()).axes
    assert format_study(study).startswith("method")


def test_settings_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    rule = {"slope_window": 9, "slope_threshold": 0.1, "parallel_steps": 2, "tau_cap": 3}
    entries = [
        {"method": "mine", "label": "slow", "config": {"tolerance": 0.01}, "steps": 3},
        {"method": "mine", "label": "theirs", "config": {"strategy": "published", "published": rule}},
        {"method": "mine", "label": "solver", "config": {"strategy": "cfg"}, "steps": 20, "scheduler": "unipc"},
    ]
    path.write_text(json.dumps(entries))
    assert read_settings(path) == [
        Setting("mine", "slow", ParallelConfig("hybrid", tolerance=0.01), 3),
        Setting("mine", "theirs", ParallelConfig("published", published=PublishedSettings(**rule))),
        Setting("mine", "solver", ParallelConfig("cfg"), 20, "unipc"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "are malformed"),
        ("[]", "must hold a list of settings"),
        ('[{"method": "a", "config": {}}]', "entry 1: method, label and config are needed"),
        ('[{"method": "a", "label": "b", "config": {"tolerence": 1}}]', "entry 1: .* are needed, .* 'tolerence'"),
        (
            '[{"method": "a", "label": "b", "config": {"tolerance": -1}}]',
            "entry 1: tolerance must be at least 0, got -1",
        ),
        (
            '[{"method": "a", "label": "b", "config": {"tolerance": "5"}}]',
            "entry 1: tolerance must be a number, got '5'",
        ),
        ('[{"method": "a", "label": "b", "config": {"published": {"tau1": 5}}}]', "entry 1: .* are needed, .* 'tau1'"),
        (
            '[{"method": "a", "label": "b", "config": {"published": {"tau_cap": 0}}}]',
            "entry 1: tau_cap must be at least 1",
        ),
        ('[{"method": "a", "label": "b", "config": 5}]', "entry 1: method, label and config are needed"),
        ('[{"method": "a", "label": "b", "config": {}, "steps": "20"}]', "entry 1: steps must be an .* 1, got '20'"),
        ('[{"method": "a", "label": "b", "config": {}, "steps": 0}]', "entry 1: steps must be an .* 1, got 0"),
        ('[{"method": "a", "label": "b", "config": {}, "steps": true}]', "entry 1: steps must be an .* 1, got True"),
        (
            '[{"method": "a", "label": "b", "config": {"strategy": "published", "devices": 3}}]',
            "entry 1: strategy 'published' needs an even number of ranks, 2 at least, got 3",
        ),
        (
            '[{"method": "a", "label": "b", "config": {"strategy": "asyncdiff", "settings": {"pace": 2}}}]',
            "entry 1: unknown setting of the strategy 'pace'; choose one of",
        ),
        (
            '[{"method": "a", "label": "b", "config": {}, "scheduler": "x"}]',
            "entry 1: unknown scheduler 'x'; choose one",
        ),
        (
            json.dumps([{"method": "a", "label": 1, "config": {"quality": quality}} for quality in (0.1, 0.2)]),
            "settings.json: 2 settings have method 'a' and label '1'; give each a label of its own",
        ),
    ],
)
def test_bad_files_of_settings_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read_settings(path)
