from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hybridiff import EngineError, ParallelConfig
from hybridiff.cli import main as cli
from hybridiff.cli.main import main
from hybridiff.cli.options import call_arguments, parallel_config, parse_options
from hybridiff.launch.protocol import Generation
from support.reports import report

RING = ["generate", "--model", "tiny-sdxl", "--prompt", "a ring", "--device", "cpu"]


class FakeEngine:
    """Draws red squares; remembers how it was made and asked."""

    made: list[dict[str, Any]]
    asked: list[dict[str, Any]]
    error: BaseException | None = None

    def __init__(self, model: Any, **options: Any) -> None:
        self.made.append(options)
        self.config: ParallelConfig = options["config"]
        self.device, self.is_leader = "cpu", True

    def generate(self, prompt: str, *, seed: int, on_step: Any, **call: Any) -> Generation:
        self.asked.append({"prompt": prompt, "seed": seed, **call})
        if self.error is not None:
            raise self.error
        for step in (1, 2):
            on_step(step, 2)
        images = [Image.new("RGB", (8, 8), "red")] * call.get("num_images_per_prompt", 1)
        return Generation(images, report([0.1, 0.2], notes=["nothing to partition"]), seed)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    fresh = type("FreshFakeEngine", (FakeEngine,), {"made": [], "asked": [], "error": None})
    monkeypatch.setattr("hybridiff.launch.engine.Engine", fresh)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return fresh


def options_of(arguments: list[str]) -> Any:
    return parse_options(cli._parser(), arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["draw"], "invalid choice: 'draw'"),
        (["generate", "--model", "tiny-sdxl"], "give either --prompt TEXT or --prompts FILE"),
        (["generate", "--prompt", "x"], "there is no model"),
        ([*RING, "--prompts", "file"], "give either --prompt TEXT or --prompts FILE"),
        ([*RING, "--model", "tiny-sdxx"], "unknown model 'tiny-sdxx'"),
        ([*RING, "--strategy", "magic"], "invalid choice: 'magic'"),
        ([*RING, "--num-inference-steps", "0"], "must be a whole number of at least 1, got '0'"),
        ([*RING, "--num-images", "many"], "must be a whole number of at least 1, got 'many'"),
        ([*RING, "--devices", "0"], "must be a whole number of at least 1, got '0'"),
        ([*RING, "--seed", "-1"], "must be a whole number of at least 0, got '-1'"),
        ([*RING, "--height", "100"], "height must be a positive multiple of 8"),
        ([*RING, "--carry", "magic"], "unknown carry 'magic'; choose one of"),
        ([*RING, "--timeout", "0"], "must be a positive number of seconds"),
        ([*RING, "--max-sequence-length", "9"], "max_sequence_length is for pipelines with a transformer"),
        ([*RING, "--output", "ring.gif"], "cannot write a picture as 'ring.gif'"),
        ([*RING, "--output", "/dev/null/ring.png"], "cannot write to the output folder"),
        ([*RING, "--config", "/nowhere.toml"], "cannot read the config file /nowhere.toml: No such file"),
        (["generate", "--model", "tiny-sdxl", "--prompts", "/nowhere"], "cannot read the prompts file /nowhere"),
        (["demo", "--repeats", "0"], "--repeats must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_before_anything_starts(
    arguments: list[str], message: str, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("hybridiff: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert engine.made == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--carry", "magic"], "unknown carry 'magic'; choose one of"),
        (["--devices", "3"], "strategy 'cfg' needs a multiple of 2 ranks"),
        (["--devices", "4", "--between", "pipelined"], "pipelined steps need 2 ranks, got 4"),
        (["--device", "cuda"], "2 ranks requested, 0 GPUs found; use --device cpu"),
        (["--device", "cuda", "--simulate"], "1 rank requested, 0 GPUs found; use --device cpu"),
        (["--trace", "trace.png"], "'trace.png' must name a .json file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_needs_no_model_is_refused_before_one_is_downloaded(
    flags: list[str],
    message: str,
    engine: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("hybridiff.models.loading.find_model", lambda *_: pytest.fail("the model was looked for"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*RING, "--model", "some/model", *flags]) == 2
    assert message in capsys.readouterr().err
    assert engine.made == []


def test_under_torchrun_its_number_of_ranks_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hybridiff.models.loading.find_model", lambda *_: pytest.fail("the model was looked for"))
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([*RING, "--model", "some/model"]) == 2
    assert "strategy 'cfg' needs a multiple of 2 ranks" in capsys.readouterr().err


def test_inspect_wants_its_device_before_its_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hybridiff.models.loading.find_model", lambda *_: pytest.fail("the model was looked for"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["inspect", "--model", "some/model", "--device", "cuda"]) == 2
    assert "1 rank requested, 0 GPUs found; use --device cpu" in capsys.readouterr().err


def test_generate_writes_and_tells_what_it_wrote(
    tmp_path: Path, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output", str(tmp_path / "ring.png"), "--num_images", "2", "--guidance_scale=7.5", "--seed", "5"]
    assert main([*RING, *flags, "--negative-prompt", "blue", "--strategy", "cfg", "--num-inference-steps", "2"]) == 0
    assert engine.asked == [
        {
            "prompt": "a ring",
            "seed": 5,
            "negative_prompt": "blue",
            "num_inference_steps": 2,
            "guidance_scale": 7.5,
            "num_images_per_prompt": 2,
        }
    ]
    captured = capsys.readouterr()
    for name in ("ring.png", "ring-1.png", "ring-sheet.png", "ring.json", "ring-discrepancy.png"):
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in captured.out
    assert "note: nothing to partition" in captured.err
    assert "2/2" in captured.err  # the progress bar
    written = json.loads((tmp_path / "ring.json").read_text())
    assert (written["model"], written["prompt"], written["seed"]) == ("tiny-sdxl", "a ring", 5)
    assert written["settings"]["guidance_scale"] == 7.5


def test_many_prompts_take_their_own_seeds_and_negative_prompts(tmp_path: Path, engine: type[FakeEngine]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(
        'a ring\n{"prompt": "a cross", "seed": 9, "negative_prompt": "red"}\n{"prompt": "x", "negative_prompt": ""}\n'
    )
    flags = ["--model", "tiny-sdxl", "--prompts", str(file), "--seed", "4", "--negative-prompt", "blue"]
    flags += ["--device", "cpu"]
    assert main(["generate", *flags, "--output", str(tmp_path)]) == 0
    assert len(engine.made) == 1
    assert engine.asked == [
        {"prompt": "a ring", "seed": 4, "guidance_scale": 2.0, "negative_prompt": "blue"},  # the model's own scale
        {"prompt": "a cross", "seed": 9, "guidance_scale": 2.0, "negative_prompt": "red"},
        {"prompt": "x", "seed": 4, "guidance_scale": 2.0, "negative_prompt": ""},
    ]
    assert json.loads((tmp_path / "picture-002.json").read_text())["prompt"] == "a cross"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (EngineError("rank 1 was killed"), 1, "hybridiff: rank 1 was killed\n"),
        (ValueError("bad"), 2, "hybridiff: bad\n"),
        (KeyboardInterrupt(), 130, "hybridiff: interrupted; all ranks have been ended\n"),
    ],
)
def test_failures_have_their_exit_codes(
    tmp_path: Path,
    engine: type[FakeEngine],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    engine.error = error
    assert main([*RING, "--output", str(tmp_path / "ring.png")]) == code
    assert capsys.readouterr().err == message


def test_flags_beat_the_config_file_which_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "ring.toml"
    file.write_text(
        'model = "tiny-sd3"\nprompt = "-- a ring"\nseed = 3\nnum_images = 2\nsimulate = true\ndevices = 4\n'
    )
    options = options_of(["generate", "--config", str(file), "--seed", "8"])
    assert (options.model, options.prompt, options.seed, options.num_images) == ("tiny-sd3", "-- a ring", 8, 2)
    assert parallel_config(options) == ParallelConfig(strategy="cfg", devices=4, simulate=True)
    assert call_arguments(options) == {"num_images_per_prompt": 2}
    assert options.output == "out/picture.png"


def test_a_flag_for_many_prompts_beats_the_prompt_of_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "ring.json"
    file.write_text('{"prompt": "a ring", "num-images": 2}')
    options = options_of(["generate", "--config", str(file), "--prompts", "many.txt"])
    assert (options.prompt, options.prompts, options.num_images) == (None, "many.txt", 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json is malformed"),
        ("a.toml", "seed 3", "a.toml is malformed"),
        ("a.json", "[1]", "must hold one table"),
        ("a.json", '{"seed": [1]}', r"seed = \[1\] is not an option with a single value"),
        ("a.json", '{"sed": 1}', "a.json: unrecognized arguments: --sed=1"),
        ("a.toml", 'seed = "x"', "a.toml: argument --seed: must be a whole number"),
    ],
)
def test_bad_config_files_are_refused_by_name(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        options_of(["generate", "--config", str(tmp_path / name)])


def test_every_field_of_the_config_has_its_option() -> None:
    options = options_of(
        [*RING, "--slope-window", "7", "--slope_threshold", "0.5", "--trace", "out/trace.json", "--carry", "hold"]
    )
    config = parallel_config(options)
    assert (config.slope_window, config.slope_threshold, config.trace, config.carry) == (7, 0.5, True, "hold")
    assert parallel_config(options_of(RING)) == ParallelConfig(devices=2)
    fields = {field.name for field in dataclasses.fields(ParallelConfig)}
    assert fields - set(vars(options)) == {"outputs"}


@pytest.mark.parametrize(
    "flags",
    [
        "--quality balanced",
        "--carry linear",
        "--tolerance 0.1",
        "--between skipped",
        "--full-steps 0-4,8",
        "--switching published",
        "--tau1 5",
        "--calibration a.json",
        "--tolerance 0.1 --devices 1",
    ],
)
def test_any_setting_of_hybrid_means_hybrid_also_where_it_is_the_default(flags: str) -> None:
    assert parallel_config(options_of([*RING, *flags.split()])).strategy == "hybrid"
    for strategy in ("cfg", "reuse"):
        assert parallel_config(options_of([*RING, *flags.split(), "--strategy", strategy])).strategy == strategy


def test_a_setting_in_the_config_file_means_hybrid_too(tmp_path: Path) -> None:
    file = tmp_path / "ring.json"
    file.write_text('{"quality": "balanced"}')
    assert parallel_config(options_of([*RING, "--config", str(file)])).strategy == "hybrid"


def test_the_help_shows_the_defaults_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "or a number (default balanced)" in text
    assert "linear or quadratic (default linear)" in text
    assert "default hybrid where any setting of strategies is given" in text
    assert "None" not in text


def test_one_device_means_serial_and_two_mean_cfg() -> None:
    assert parallel_config(options_of([*RING, "--devices", "1"])).strategy == "serial"
    assert parallel_config(options_of(RING)).strategy == "cfg"
    assert parallel_config(options_of([*RING, "--strategy", "serial"])).devices == 1
    assert parallel_config(options_of([*RING, "--quality", "draft"])).strategy == "hybrid"
    assert parallel_config(options_of([*RING, "--quality", "0.3", "--devices", "1"])).strategy == "hybrid"
    assert parallel_config(options_of([*RING, "--quality", "draft", "--strategy", "cfg"])).strategy == "cfg"


def test_help_and_version_do_not_import_torch() -> None:
    code = (
        "import sys; from hybridiff.cli.main import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["hybridiff", "0.1.0", "False", "False"]
