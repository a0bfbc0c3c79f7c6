"""`hybridiff generate --config FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridiff import ParallelConfig, UsageError
from hybridiff.cli.main import main, parse
from hybridiff.config import PublishedSettings


def generate(tmp_path: Path, content: str, *flags: str, name: str = "ring.toml") -> Any:
    (tmp_path / name).write_text(content)
    return parse(["generate", "--config", str(tmp_path / name), *flags])


def test_flags_beat_the_file_which_beats_defaults(tmp_path: Path) -> None:
    content = 'model = "tiny-sd3"\nprompt = "-- a ring"\nseed = 3\nnum_images = 2\ndevices = 4\nset.simulate = true\n'
    command = generate(tmp_path, content, "--seed", "8")
    assert (command.model, command.seed, command.num_images) == ("tiny-sd3", 8, 2)
    assert [(prompt.prompt, prompt.seed) for prompt in command.all_prompts()] == [("-- a ring", 8)]
    assert command.parallel_config() == ParallelConfig(strategy="cfg", devices=4, simulate=True)
    assert command.output == "out/"


def test_tables_hold_settings_and_arguments_which_flags_beat_one_by_one(tmp_path: Path) -> None:
    content = """
        model = "tiny-sdxl"
        quality = 0.3
        guidance-scale = 3
        [set]
        tolerance = 0.2
        full-steps = "0-4,8"
        [arg]
        guidance_rescale = 0.5
        eta = 0.1
    """
    flags = ["--set", "tolerance=0.1", "--arg", "eta=0.9", "--arg", "clip_skip=1"]
    command = generate(tmp_path, content, *flags)
    config = command.parallel_config()
    assert (config.quality, config.tolerance, config.full_steps) == ("0.3", 0.1, "0-4,8")
    assert (config.strategy, config.published) == ("hybrid", PublishedSettings())
    arguments = command.call_arguments(command.config.tables["arg"])
    assert arguments == {"guidance_scale": 3.0, "guidance_rescale": 0.5, "eta": 0.9, "clip_skip": 1}


def test_a_setting_in_the_file_means_its_strategy_too(tmp_path: Path) -> None:
    for content in ('{"model": "m", "quality": "balanced"}', '{"model": "m", "set": {"step_kind": "reuse"}}'):
        assert generate(tmp_path, content, name="ring.json").parallel_config().strategy == "hybrid"


def test_a_strategy_with_the_settings_of_another_is_refused(tmp_path: Path) -> None:
    content = 'model = "m"\nquality = 0.3\nset.published.tau_cap = 7'
    with pytest.raises(UsageError, match="quality is for strategy 'hybrid', got 'published'"):
        generate(tmp_path, content).parallel_config()
    config = generate(tmp_path, 'model = "m"\nset.published.tau_cap = 7').parallel_config()
    assert (config.strategy, config.published) == ("published", PublishedSettings(tau_cap=7))


def test_a_switch_may_be_off(tmp_path: Path) -> None:
    assert generate(tmp_path, 'model = "m"\nset.simulate = false').parallel_config().simulate is False


def test_a_flag_for_many_prompts_beats_the_prompt_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("a cross\n")
    command = generate(
        tmp_path,
        '{"model": "m", "prompt": "a ring", "num-images": 2}',
        "--prompts",
        str(tmp_path / "many.txt"),
        name="a.json",
    )
    assert [prompt.prompt for prompt in command.all_prompts()] == ["a cross"]
    assert command.num_images == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json: malformed: "),
        ("a.toml", "seed 3", "a.toml: malformed: "),
        ("a.json", "[1]", "a.json: must hold one table of options"),
        ("a.json", '{"seed": [1]}', "a.json: seed cannot be [1]"),
        ("a.json", '{"config": "b.json"}', "a.json: unknown option 'config'; choose one of model, "),
        ("a.json", '{"sed": 1}', "a.json: unknown option 'sed'; choose one of model, "),
        ("a.toml", 'seed = "x"', "a.toml: Invalid value for '--seed': Input should be a valid integer"),
        ("a.toml", "seed = -1", "a.toml: --seed must be at least 0, got -1"),
        ("a.toml", "guidance_scale = nan", "a.toml: --guidance-scale must be a finite number, got nan"),
        ("a.toml", 'strategy = "magic"', "a.toml: unknown strategy 'magic'"),
        ("a.toml", "set = 3", "a.toml: Invalid value for '--set'"),
        ("a.toml", "[set]\ncarry = 1", "unknown setting 'carry'"),
        ("a.toml", "[set]\ntau_cap = '9'", "tau_cap must be an integer, got '9'"),
        ("a.toml", "[arg]\nseed = 1", "--arg seed has a flag of its own: use --seed"),
        ("a.toml", "[arg]\neta = inf", "--arg eta must be a finite number, got inf"),
    ],
    ids=lambda value: value.split("\n")[-1],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    flags = ["--model", "some/model", "--prompt", "x", "--output", str(tmp_path)]
    assert main(["generate", *flags, "--config", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
