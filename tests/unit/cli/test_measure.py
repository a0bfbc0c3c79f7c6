"""The commands that measure on one device: `hybridiff simulate` and `hybridiff calibrate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybridiff.cli.main import main, parse
from hybridiff.config import PublishedSettings
from hybridiff.evaluation.workload import Workload, take_prompts
from hybridiff.models.tiny.scenes import parse_caption, split_of
from hybridiff.schedule.calibration import Band, Calibration, Entry

ENTRY = Entry(
    scheduler="FlowMatchEulerDiscreteScheduler",
    num_inference_steps=3,
    guidance_scale=5.0,
    prompts=1,
    bands=(Band(0.0, "cached", ((0.0, 0.3), (0.5, 0.1), (1.0, 0.0))),),
    published=PublishedSettings(slope_window=1, slope_threshold=0.01, parallel_steps=1, tau_cap=1),
    curves={
        "discrepancy": [0.3, 0.2, 0.1],
        "discrepancy_deviation": [0.1, 0.1, 0.1],
        "drift": [0.2, 0.1],
        "drift_deviation": [0.1, 0.1],
    },
    measured=[
        {"step_kind": "cached", "tolerance": 0.1, "ideal_speedup": 2.5, "psnr": 50.0},
        {"step_kind": "cached", "tolerance": 0.3, "ideal_speedup": 3.5, "psnr": 36.0},
    ],
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate"], "Missing option '--model'; see hybridiff simulate --help"),
        (["simulate", "--model", "tiny-sdxl", "--methods", "exact,magic"], "unknown method 'magic'; choose one of"),
        (["simulate", "--model", "tiny-sdxl", "--output", "x.png"], "'x.png' must name a .json file"),
        (["simulate", "--model", "tiny-sdxl", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["simulate", "--model", "some/model"], "give --prompts FILE: only tiny-sdxl and tiny-sd3 bring prompts"),
        (["simulate", "--model", "tiny-sdxl", "--prompts", "/nowhere"], "cannot read the prompts file /nowhere"),
        (["simulate", "--model", "tiny-sdxl", "--guidance-scale", "1"], "guidance_scale must be above 1, got 1"),
        (["simulate", "--model", "tiny-sdxl", "--height", "3"], "height must be a"),
        (["simulate", "--model", "tiny-sdxl", "--num-inference-steps", "2"], "must be at least 3, got 2"),
        (["simulate", "--model", "tiny-sd3", "--scheduler", "ddim"], "is for diffusion models, this is a flow"),
        (["simulate", "--model", "tiny-sdxl", "--settings", "/nowhere"], "cannot read the settings /nowhere"),
        (["study", "--model", "some/model"], "give --prompts FILE: only tiny-sdxl and tiny-sd3 bring prompts"),
        (
            ["study", "--model", "tiny-sdxl", "--converged-steps", "9"],
            "must be 0 or above the 50 steps of images, got 9",
        ),
        (["study", "--model", "tiny-sdxl", "--scheduler", "euler-ancestral"], "adds noise, its images do not converge"),
        (["study", "--model", "tiny-sdxl", "--again", "magic"], "unknown method 'magic'; choose one of exact"),
        (["calibrate", "--model", "tiny-sdxl", "--step-kinds", "magic"], "unknown step kind 'magic'; choose one of"),
        (["calibrate", "--model", "some/model"], "give --prompts FILE: only tiny-sdxl and tiny-sd3 bring prompts"),
        (
            ["calibrate", "--model", "tiny-sdxl", "--scheduler", "heun"],
            "is of order 2: thresholds are calibrated for one",
        ),
    ],
)
def test_bad_input_is_one_line_before_any_network_runs(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "hybridiff.evaluation.frontier.generation.generate", lambda *_: pytest.fail("something was generated")
    )
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.splitlines()[-1].startswith("hybridiff: ")
    assert captured.out == ""


def test_simulate_reads_the_settings_before_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hybridiff.evaluation.workload.find_model", lambda *_: pytest.fail("the model was looked for"))
    path, prompts = tmp_path / "settings.json", tmp_path / "prompts.txt"
    path.write_text('[{"method": "a", "label": "b", "config": {"tolerance": "5"}}]')
    prompts.write_text("a ring\n")
    assert main(["simulate", "--model", "some/model", "--prompts", str(prompts), "--settings", str(path)]) == 2
    assert "settings.json, entry 1: tolerance must be a number, got '5'" in capsys.readouterr().err


def test_simulate_writes_the_frontier_and_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "frontier.json"
    flags = ["--limit", "1", "--num-inference-steps", "3", "--methods", "exact", "--output", str(path)]
    assert main(["simulate", "--model", "tiny-sd3", "--arg", "max_sequence_length=16", "--device", "cpu", *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[:3] == ["exact", "cfg", "2.00x"]
    assert str(path) in captured.out
    assert "exact: 100%" in captured.err, "the progress bar"
    content = json.loads(path.read_text())
    assert content["run"]["guidance_scale"] == 5.0, "the model's own"
    assert content["run"]["prompts"][0]["seed"] == 0
    assert content["rows"][0]["psnr"] > 80
    assert path.with_suffix(".png").exists()
    assert "| exact | cfg | 2.00x |" in path.with_suffix(".md").read_text()
    assert main(["simulate", "--model", "tiny-sd3", "--device", "cpu", *flags]) == 2
    assert "holds another run, with other max_sequence_length" in capsys.readouterr().err


@pytest.mark.slow
def test_study_compares_solvers_on_one_page_and_measures_again_what_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.json"
    flags = ["--limit", "1", "--num-inference-steps", "4", "--converged-steps", "12", "--output", str(path)]
    command = ["study", "--model", "tiny-sdxl", "--device", "cpu", *flags]
    assert main([*command, "--methods", "exact,fidelity"]) == 0
    assert not path.with_name("study-solvers.png").exists(), "of one solver alone"
    first = {row["label"]: row for row in json.loads(path.read_text())["rows"]}
    assert main([*command, "--methods", "solvers", "--again", "fidelity"]) == 0
    content = json.loads(path.read_text())
    assert content["run"]["converged_steps"] == 12
    assert {row["method"] for row in content["rows"]} == {
        "exact",
        "fewer-steps",
        "solvers",
        "fidelity",
        "solvers-hybrid",
    }
    assert content["rows"][0] == first["cfg"], "kept"
    assert "65 dB promised" not in [row["label"] for row in content["rows"]], "forgotten, and not asked for again"
    assert all(row["psnr_converged"] < 100.0 for row in content["rows"])
    page = path.with_suffix(".md").read_text()
    assert "## Promises" in page
    assert "Against the converged image" in page
    written = capsys.readouterr().out.split()[-4:]
    assert [Path(name).name for name in written] == ["study.json", "study.png", "study.md", "study-solvers.png"]
    assert all(Path(name).exists() for name in written)


def test_study_is_simulate_with_other_methods() -> None:
    simulate, study = (parse([name, "--model", "tiny-sd3"]) for name in ("simulate", "study"))
    assert (simulate.converged_steps, study.converged_steps, study.limit) == (0, 500, 32)
    assert study._methods() == ["exact", "quality", "fidelity", "cached", "solvers"]
    assert "solvers" not in simulate._methods()
    assert "fidelity" in simulate._methods()


def test_calibrate_adds_to_its_file_and_tells_how_to_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "hybridiff.evaluation.calibration.thresholds.calibrate", lambda *arguments: asked.append(arguments) or ENTRY
    )
    path, prompts = tmp_path / "calibration.json", tmp_path / "prompts.txt"
    prompts.write_text("a ring\n")
    flags = ["--model", "tiny-sd3", "--device", "cpu", "--step-kinds", "cached", "--output", str(path)]
    for steps in ("3", "4"):
        assert main(["calibrate", *flags, "--prompts", str(prompts), "--num-inference-steps", steps]) == 0
    _, given, call, candidates, _ = asked[0]
    assert ([prompt.prompt for prompt in given], candidates) == (["a ring"], ["cached"])
    assert (call["num_inference_steps"], call["guidance_scale"]) == (3, 5.0)
    captured = capsys.readouterr()
    assert "warning: thresholds from 1 prompts follow the prompts more than the model; give at least 16" in captured.err
    assert f"--calibration {path}" in captured.out
    assert captured.out.splitlines()[2] == "quality  step kind  tolerance  ideal speed-up  PSNR against one device"
    assert Calibration.read(path).entries == (ENTRY,)
    assert (tmp_path / "calibration-FlowMatchEulerDiscreteScheduler-3.png").exists()
    assert main(["calibrate", *flags, "--model", "tiny-sdxl"]) == 2
    assert "holds the thresholds of tiny-sd3, not of tiny-sdxl" in capsys.readouterr().err


def test_what_another_calibration_adds_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, prompts = tmp_path / "calibration.json", tmp_path / "prompts.txt"
    prompts.write_text("a ring\n")
    other = replace(ENTRY, num_inference_steps=8)

    def calibrate(*_: Any) -> Entry:
        Calibration.open(path, "tiny-sd3").with_entry(other).write(path)
        return ENTRY

    monkeypatch.setattr("hybridiff.evaluation.calibration.thresholds.calibrate", calibrate)
    flags = ["--model", "tiny-sd3", "--device", "cpu", "--prompts", str(prompts), "--output", str(path)]
    assert main(["calibrate", *flags]) == 0
    assert Calibration.read(path).entries == (ENTRY, other)


def test_the_embedded_models_bring_prompts_that_no_other_use_sees() -> None:
    calibration = take_prompts("tiny-sdxl", None, "calibration", (16, 16))
    evaluation = take_prompts("tiny-sdxl", None, "evaluation", (64,))
    assert (len(calibration), len(evaluation)) == (32, 64)
    assert len(parse_caption(calibration[-1].prompt).objects) == 2
    assert {split_of(parse_caption(prompt.prompt)) for prompt in evaluation} == {"evaluation"}


def test_a_workload_calls_the_model_by_its_own_defaults() -> None:
    workload = Workload.load("tiny-sd3", {"max_sequence_length": 16}, device="cpu")
    assert workload.call == {"num_inference_steps": 28, "guidance_scale": 5.0, "max_sequence_length": 16}
    facts = workload.facts()
    assert (facts["model"], facts["dtype"], facts["device"]) == ("tiny-sd3", "float32", "cpu")
    assert json.loads(json.dumps(facts)) == facts
