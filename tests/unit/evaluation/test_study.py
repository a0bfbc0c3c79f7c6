"""A frontier on disk: it goes on where it was stopped, and refuses to mix runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridiff import ParallelConfig
from hybridiff.evaluation.charts import frontier_figure
from hybridiff.evaluation.frontier import Cuts, Drawing, FrontierRow, Setting
from hybridiff.evaluation.grid import guided_models
from hybridiff.evaluation.study import Study, read_settings, run_study
from hybridiff.evaluation.tables import format_markdown, format_study
from hybridiff.utils.prompts import Prompt
from support.pipelines import build

CALL = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 32, "width": 32, "max_sequence_length": 12}
RUN = {"model": "random", "scheduler": "FlowMatchEulerDiscreteScheduler", "dtype": "float32", "prompts": [], **CALL}
PROMPTS = [Prompt("a red ring on a white background"), Prompt("a cross")]
EXACT = Setting("exact", "cfg", ParallelConfig(strategy="cfg", simulate=True))
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
    (row,) = study.rows
    assert row["label"] == "as tolerance 0.14"
    assert row["config"]["full_steps"] == study.typical[0]["full_steps"]


def described(setting: Setting, **thresholds: Any) -> dict[str, Any]:
    return {
        "family": setting.family,
        "label": setting.label,
        "steps": 4,
        "config": {},
        "thresholds": thresholds,
    }


def drawn(setting: Setting, speed: float = 2.0, psnr: float = 50.0) -> FrontierRow:
    return FrontierRow(setting, [Drawing(psnr, None, None, speed, "fsff", 0, 1)])


def test_a_row_whose_thresholds_changed_is_measured_again(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    study.add(described(EXACT, tolerance=0.1), drawn(EXACT, 2.0))
    assert study.has(described(EXACT, tolerance=0.1))
    assert not study.has(described(EXACT, tolerance=0.2))
    study.add(described(EXACT, tolerance=0.2), drawn(EXACT, 3.0))
    assert [row["ideal_speedup"] for row in study.rows] == [3.0]


def test_runs_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    Study.open(path, RUN, {}).save()
    with pytest.raises(ValueError, match="holds another run, with other dtype, height; use another --output, or"):
        Study.open(path, RUN | {"dtype": "bfloat16", "height": 64}, {})
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no frontier: it lacks cuts"):
        Study.open(path, RUN, {})
    path.write_text("[")
    with pytest.raises(ValueError, match="is no frontier; give another"):
        Study.open(path, RUN, {})


CUT = {"cut": 1, "outer": 0.5, "inner": 0.5}


@pytest.mark.parametrize(
    "part",
    [
        {"run": ["sd3"]},
        {"cuts": {"pipeline": CUT}},
        {"cuts": {"pipeline": CUT, "reuse": CUT, "other": CUT}},
        {"cuts": {"pipeline": CUT, "reuse": {"cut": 1}}},
        {"cuts": {"pipeline": CUT, "reuse": CUT | {"cut": "1"}}},
        {"cuts": {"pipeline": CUT, "reuse": CUT | {"outer": None}}},
        {"cuts": [1, 2]},
        {"reference": 3},
        {"typical": [{"guided": {}}]},
        {"typical": {}},
        {"rows": [1]},
        {"rows": None},
    ],
    ids=str,
)
def test_a_file_with_malformed_parts_is_no_frontier(part: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    study = Study(path, RUN, {}, Cuts(CUT, CUT), {"right": None}, [{"guided": {}, "full_steps": "0-2"}], [])
    path.write_text(json.dumps(study.to_dict()))
    assert Study.open(path, RUN, {}).cuts == Cuts(CUT, CUT)
    path.write_text(json.dumps(study.to_dict() | part))
    (name,) = part
    with pytest.raises(ValueError, match=f"is no frontier: its {name} cannot be used; give another --output, or"):
        Study.open(path, RUN, {})


def test_two_settings_of_one_name_are_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    other = Setting(EXACT.family, EXACT.label, ParallelConfig(strategy="hybrid", tolerance=0.1, simulate=True))
    with pytest.raises(
        ValueError, match="2 settings have family 'exact' and label 'cfg'; give each a label of its own"
    ):
        run_study(study, None, PROMPTS, [EXACT, other], CALL)


def test_the_table_and_the_figure_show_every_row(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    guided = Setting("skipped", "tolerance 0.1", ParallelConfig(strategy="hybrid", tolerance=0.1))
    published = Setting("published", "k 5, tau1 5", ParallelConfig(strategy="hybrid", switching="fixed"))
    own = Setting("mine", "a", guided.config)
    alone = Setting("mine", "b, 1 device", guided.config)
    study.add(described(alone) | {"config": {"devices": 1}}, drawn(alone, 1.5, 41.0))
    for setting, speed, psnr in [(guided, 3.0, 40.0), (EXACT, 2.0, 100.0), (published, 2.1, 33.0), (own, 2.5, 44.0)]:
        study.add(described(setting), drawn(setting, speed, psnr))
    row = FrontierRow(guided, [Drawing(40.0, 0.9, True, 3.0, letters, 0, 1) for letters in ("ffff", "fsff", "fssf")])
    study.add(described(guided), row)
    lines = format_study(study).splitlines()
    assert lines[0].split() == [
        "family",
        "setting",
        "speed-up",
        "PSNR",
        "worst",
        "tenth",
        "SSIM",
        "right",
        "full",
        "steps",
    ]
    assert lines[1].split() == ["exact", "cfg", "2.00x", "100.0", "dB", "100.0", "dB", "-", "-", "3"]
    assert lines[-1].split()[-3:] == ["0.9000", "100%", "2-3-4"]
    page = format_markdown(study)
    assert page.startswith("# random, 4 steps, FlowMatchEulerDiscreteScheduler, float32, 0 prompts\n")
    assert "\n| exact | cfg | 2.00x | 100.0 dB | 100.0 dB | - | - | 3 |\n" in page
    assert "\n| skipped |  |  | 40.0 |  |  |  |  |  |  |\n" in page, "at 3x"
    assert "\n| mine |  | 44.0 |" in page, "what ran on one device does not count"
    (axes,) = frontier_figure(study.to_dict()).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["skipped", "published", "exact", "mine", "mine, one device"]
    assert axes.lines[2].get_ydata()[0] == 72.0, "no higher, or there were no room for the others"
    assert any("published exchange at its best: 2.10x, 33.0 dB" in text.get_text() for text in axes.texts)


def test_an_empty_study_can_be_drawn(tmp_path: Path) -> None:
    study = Study.open(tmp_path / "frontier.json", RUN, {})
    assert frontier_figure(study.to_dict()).axes
    assert format_study(study).startswith("family")


def test_settings_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps([{"family": "mine", "label": "slow", "config": {"tolerance": 0.01}, "steps": 3}]))
    config = ParallelConfig(strategy="hybrid", tolerance=0.01, simulate=True)
    assert read_settings(path) == [Setting("mine", "slow", config, 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "are malformed"),
        ("[]", "must hold a list of settings"),
        ('[{"family": "a", "config": {}}]', "entry 1: family, label and config are needed"),
        ('[{"family": "a", "label": "b", "config": {"tolerence": 1}}]', "entry 1: .* are needed, .* 'tolerence'"),
        ('[{"family": "a", "label": "b", "config": {"tolerance": -1}}]', "entry 1: tolerance must be a number"),
        ('[{"family": "a", "label": "b", "config": {"tau1": "5"}}]', "entry 1: tau1 must be a whole number, got '5'"),
        ('[{"family": "a", "label": "b", "config": 5}]', "entry 1: family, label and config are needed"),
        ('[{"family": "a", "label": "b", "config": {}, "steps": "20"}]', "entry 1: steps must be a .* 1, got '20'"),
        ('[{"family": "a", "label": "b", "config": {}, "steps": 0}]', "entry 1: steps must be a .* 1, got 0"),
        ('[{"family": "a", "label": "b", "config": {}, "steps": true}]', "entry 1: steps must be a .* 1, got True"),
        (
            json.dumps([{"family": "a", "label": 1, "config": {"quality": quality}} for quality in (0.1, 0.2)]),
            "settings.json: 2 settings have family 'a' and label '1'; give each a label of its own",
        ),
    ],
)
def test_bad_files_of_settings_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_settings(path)
