"""The command line: what it refuses, what `hybridiff generate` makes of its options, exit codes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hybridiff import ParallelConfig
from hybridiff.cli.generate import Generate
from hybridiff.cli.main import main, parse
from hybridiff.config import PublishedSettings
from hybridiff.errors import EngineError, RankError, UsageError
from hybridiff.launch.protocol import Generation
from support.reports import report

RING = ["generate", "--model", "tiny-sdxl", "--prompt", "a ring", "--device", "cpu"]


class FakeEngine:
    """Generates red squares; remembers how it was made and asked."""

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
        parts = {"encoding": 0.25, "denoising": 1.0, "decoding": 0.5}
        made = report([0.1, 0.2], notes=["nothing to partition"], parts=parts, peak_memory=[2**30, 2**29])
        return Generation(images, made, seed)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    fresh = type("FreshFakeEngine", (FakeEngine,), {"made": [], "asked": [], "error": None})
    monkeypatch.setattr("hybridiff.launch.engine.Engine", fresh)
    for name in ("RANK", "WORLD_SIZE", "HYBRIDIFF_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    return fresh


def config_of(*flags: str) -> ParallelConfig:
    return parse([*RING, *flags]).parallel_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command; see hybridiff --help"),
        (["draw"], "No such command 'draw'; see hybridiff --help"),
        (["generate", "--model", "tiny-sdxl"], "give either --prompt TEXT or --prompts FILE"),
        (["generate", "--prompt", "x"], "Missing option '--model'; see hybridiff generate --help"),
        ([*RING, "--prompts", "file"], "give either --prompt TEXT or --prompts FILE"),
        ([*RING, "--modle", "x"], "No such option: --modle"),
        ([*RING, "x"], "unexpected extra argument"),
        ([*RING, "--output"], "Option '--output' requires an argument"),
        ([*RING, "--model", "tiny-sdxx"], "unknown model 'tiny-sdxx'"),
        ([*RING, "--strategy", "magic"], "unknown strategy 'magic'; choose one of serial, cfg, hybrid, published"),
        ([*RING, "--scheduler", "dpmsolver--"], "unknown scheduler 'dpmsolver--'; choose one of ddim"),
        ([*RING, "--device", "tpu"], "unknown device 'tpu'; choose one of auto, cuda, cpu"),
        ([*RING, "--dtype", "int8"], "unknown dtype 'int8'; choose one of float32"),
        ([*RING, "--num-inference-steps", "0"], "--num-inference-steps must be at least 1, got 0"),
        ([*RING, "--num-images", "many"], "'--num-images': Input should be a valid integer"),
        ([*RING, "--num-images", "-3"], "--num-images must be at least 1, got -3"),
        ([*RING, "--devices", "0"], "--devices must be at least 1, got 0"),
        ([*RING, "--seed", "-1"], "--seed must be at least 0, got -1"),
        ([*RING, "--seed", "1" + "0" * 30], "--seed must be at most"),
        ([*RING, "--height", "10000000"], "--height must be at most 16384"),
        ([*RING, "--height", "100"], "height must be a"),
        ([*RING, "--guidance-scale", "nan"], "--guidance-scale must be a finite number, got nan"),
        ([*RING, "--guidance-scale", "-inf"], "--guidance-scale must be a finite number, got -inf"),
        ([*RING, "--guidance_scale", "-1"], "--guidance-scale must be at least 0, got -1"),
        ([*RING, "--timeout", "0"], "--timeout must be above 0, got 0"),
        ([*RING, "--timeout", "inf"], "--timeout must be a finite number, got inf"),
        ([*RING, "--timeout", "1e9"], "--timeout must be at most 604800"),
        ([*RING, "--quality", "1.5"], "quality must be draft, balanced, high, exact or a number from 0 to 1"),
        ([*RING, "--set", "carry=linear"], "unknown setting 'carry'; choose one of step_kind, tolerance, full_steps"),
        ([*RING, "--set", "tolerance"], "--set takes NAME=VALUE, got 'tolerance'"),
        ([*RING, "--set", "tolerance=low"], "tolerance must be a number, got 'low'"),
        ([*RING, "--set", "tolerance=NaN"], "tolerance must be a finite number, got nan"),
        ([*RING, "--set", "step_kind=magic"], "unknown step_kind 'magic'; choose one of cached, reuse"),
        ([*RING, "--set", "full_steps=all"], "full_steps must look like 0-4,8,11, got 'all'"),
        ([*RING, "--set", "tau_cap=2.5"], "tau_cap must be an integer, got 2.5"),
        ([*RING, "--arg", "=3"], "--arg takes NAME=VALUE, got '=3'"),
        ([*RING, "--arg", "height=64"], "--arg height has a flag of its own: use --height"),
        ([*RING, "--arg", "num_images_per_prompt=2"], "has a flag of its own: use --num-images"),
        ([*RING, "--arg", "guidance_rescale=Infinity"], "--arg guidance_rescale must be a finite number, got inf"),
        ([*RING, "--output", "ring.gif"], "cannot write an image as 'ring.gif'"),
        ([*RING, "--output", "/dev/null/ring.png"], "cannot write to the output folder"),
        ([*RING, "--config", "/nowhere.toml"], "/nowhere.toml: cannot read it: No such file"),
        (["generate", "--model", "tiny-sdxl", "--prompts", "/nowhere"], "cannot read the prompts file /nowhere"),
        (["demo", "--repeats", "0"], "--repeats must be at least 1, got 0"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
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


def test_an_argument_that_the_pipeline_would_ignore_is_refused(
    engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RING, "--arg", "max_sequence_length=9"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # the libraries that are loaded may say more
    assert error.startswith("hybridiff: unknown argument of StableDiffusionXLPipeline 'max_sequence_length'; choose")
    assert "guidance_rescale" in error
    assert engine.made == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "carry=1"], "unknown setting 'carry'"),
        (
            ["--devices", "3", "--strategy", "published"],
            "strategy 'published' needs an even number of ranks, 2 at least, got 3",
        ),
        (
            ["--devices", "5", "--strategy", "published"],
            "strategy 'published' needs an even number of ranks, 2 at least, got 5",
        ),
        (["--device", "cuda"], "2 ranks requested, 0 GPUs found; use --device cpu"),
        (["--device", "cuda", "--set", "simulate=true"], "1 rank requested, 0 GPUs found; use --device cpu"),
        (["--trace", "trace.png"], "'trace.png' must name a .json file"),
        (["--arg", "seed=3"], "--arg seed has a flag of its own: use --seed"),
        (["--offload", "model"], "offload model keeps networks in main memory until a GPU needs them; on the CPU"),
        (["--compile", "all"], "unknown compile 'all'; choose one of none, blocks, whole"),
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
    assert config_of().devices is None
    assert main([*RING, "--model", "some/model", "--strategy", "published"]) == 2
    assert "strategy 'published' needs an even number of ranks, 2 at least, got 3" in capsys.readouterr().err


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
    flags += ["--arg", "guidance_rescale=0.7", "--arg", "sigmas=[1, 0.5]", "--arg", "prompt_2=two words"]
    assert main([*RING, *flags, "--negative-prompt", "blue", "--strategy", "cfg", "--num-inference-steps", "2"]) == 0
    assert engine.asked == [
        {
            "prompt": "a ring",
            "seed": 5,
            "negative_prompt": "blue",
            "num_inference_steps": 2,
            "guidance_scale": 7.5,
            "guidance_rescale": 0.7,
            "sigmas": [1, 0.5],
            "prompt_2": "two words",
            "num_images_per_prompt": 2,
        }
    ]
    captured = capsys.readouterr()
    for name in ("ring.png", "ring-1.png", "ring-sheet.png", "ring.json", "ring-discrepancy.png"):
        assert (tmp_path / name).exists()
        assert str(tmp_path / name) in captured.out
    assert "encoding 0.25 s (" in captured.out
    assert "denoising 1.00 s (" in captured.out
    assert "saving 0." in captured.out
    assert "memory at most: 1.00, 0.50 GiB (a rank each)" in captured.out
    assert "note: nothing to partition" in captured.err
    assert "2/2" in captured.err  # the progress bar
    written = json.loads((tmp_path / "ring.json").read_text())
    assert (written["model"], written["prompt"], written["seed"]) == ("tiny-sdxl", "a ring", 5)
    assert (written["settings"]["guidance_scale"], written["negative_prompt"]) == (7.5, "blue")
    assert list(written["parts"]) == list(written["shares"]) == ["encoding", "denoising", "decoding", "saving"]
    assert sum(written["shares"].values()) == pytest.approx(1.0)
    assert written["peak_memory"] == [2**30, 2**29]


def test_ranks_compile_and_the_image_tells_so(tmp_path: Path, engine: type[FakeEngine]) -> None:
    path = tmp_path / "ring.png"
    assert main([*RING, "--output", str(path), "--compile", "whole"]) == 0
    assert engine.made[0]["compile"] == "whole"
    assert json.loads(Image.open(path).text["settings"])["compile"] == "whole"


def test_a_promise_is_told_with_what_became_of_it(
    tmp_path: Path,
    engine: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fidelity = {"promised": 50.0, "estimated": 51.26}
    made = Generation([Image.new("RGB", (8, 8), "red")], report([0.1, 0.2], fidelity=fidelity), 0)
    monkeypatch.setattr(engine, "generate", lambda self, prompt, **call: made)
    path = tmp_path / "ring.png"
    assert main([*RING, "--output", str(path), "--fidelity", "50"]) == 0
    assert engine.made[0]["config"] == ParallelConfig("hybrid", devices=2, fidelity=50.0)
    assert "\nfidelity: 50 dB promised, 51.3 dB estimated for the worst image\n" in capsys.readouterr().out
    settings = json.loads(Image.open(path).text["settings"])
    assert (settings["strategy"], settings["fidelity"]) == ("hybrid", 50.0)
    assert json.loads(path.with_suffix(".json").read_text())["fidelity"] == fidelity


def test_nothing_is_told_of_what_was_not_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RING, "--output", str(tmp_path / "ring.png"), "--quality", "high"]) == 0
    assert "fidelity" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fidelity", "9"], "fidelity must be at least 10, got 9"),
        (["--fidelity", "101"], "fidelity must be at most 100, got 101"),
        (["--fidelity", "nan"], "fidelity must be a finite number, got nan"),
        (["--fidelity", "fine"], "Invalid value for '--fidelity': Input should be a valid number"),
        (["--fidelity", "50", "--quality", "high"], "give either fidelity or quality: both decide which steps"),
        (["--fidelity", "50", "--set", "tolerance=0.1"], "give either fidelity or tolerance: both decide which steps"),
        (["--fidelity", "50", "--set", "full_steps=0-4"], "give either fidelity or full_steps: both decide which"),
        (["--fidelity", "50", "--set", "step_kind=reuse"], "fidelity is promised for cached steps only"),
        (["--fidelity", "50", "--strategy", "cfg"], "fidelity is for strategy 'hybrid', got 'cfg'"),
        (["--quality", "high", "--strategy", "serial"], "quality is for strategy 'hybrid', got 'serial'"),
        (["--set", "tolerance=0.1", "--strategy", "published"], "tolerance is for strategy 'hybrid', got 'published'"),
        (["--set", "fidelity=50"], "unknown setting 'fidelity'; choose one of step_kind"),
    ],
)
def test_promises_that_cannot_be(
    flags: list[str], message: str, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RING, *flags]) == 2
    assert message in capsys.readouterr().err
    assert engine.made == []


def test_a_promise_in_a_file_and_from_one_process(tmp_path: Path) -> None:
    file = tmp_path / "ring.toml"
    file.write_text("fidelity = 45.5\n")
    assert config_of("--config", str(file)) == ParallelConfig("hybrid", devices=2, fidelity=45.5)
    assert config_of("--fidelity", "60", "--config", str(file)).fidelity == 60
    assert config_of("--fidelity", "60", "--devices", "1") == ParallelConfig("hybrid", devices=1, fidelity=60.0)


def test_an_image_says_how_to_make_it_again(tmp_path: Path) -> None:
    path = tmp_path / "ring.png"
    assert main([*RING, "--output", str(path), "--scheduler", "dpmsolver++", "--quality", "high"]) == 0
    text = Image.open(path).text
    settings = json.loads(text["settings"])
    assert (text["prompt"], text["model"], text["seed"]) == ("a ring", "tiny-sdxl", "0")
    assert (settings["strategy"], settings["quality"], settings["scheduler"]) == ("hybrid", "high", "dpmsolver++")
    assert "negative_prompt" not in text


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
    assert json.loads((tmp_path / "image-002.json").read_text())["prompt"] == "a cross"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("bad"), 2, "hybridiff: bad\n"),
        (EngineError("rank 1 was killed"), 1, "hybridiff: rank 1 was killed\n"),
        (RankError("rank 1 is silent"), 1, "hybridiff: rank 1 is silent\n"),
        (OSError(28, "No space left on device"), 1, "hybridiff: [Errno 28] No space left on device\n"),
        (ValueError("bad\nshape"), 1, "hybridiff: ValueError: bad shape; --traceback shows where it came from\n"),
        (KeyError("x"), 1, "hybridiff: KeyError: 'x'; --traceback shows where it came from\n"),
        (KeyboardInterrupt(), 130, "hybridiff: interrupted; all ranks have been ended\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
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


def test_a_trace_does_not_take_the_place_of_the_report(
    tmp_path: Path, engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--output", str(tmp_path / "ring.png"), "--trace", str(tmp_path / "ring.json")]
    assert main([*RING, *flags]) == 2
    assert "ring.json is the file of the report; give another one" in capsys.readouterr().err
    assert engine.made == []


@pytest.mark.parametrize("way", ["before", "after", "environment"])
def test_the_traceback_is_there_for_who_asks(
    way: str,
    tmp_path: Path,
    engine: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine.error = ValueError("bad")
    arguments = [*RING, "--output", str(tmp_path / "ring.png")]
    if way == "environment":
        monkeypatch.setenv("HYBRIDIFF_TRACEBACK", "1")
    else:
        arguments.insert(0 if way == "before" else len(arguments), "--traceback")
    assert main(arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("hybridiff: ValueError: bad")


@pytest.mark.parametrize("module", ["typer", "hybridiff.launch.engine"])
def test_ctrl_c_while_modules_load_ends_in_one_line(module: str) -> None:
    code = (
        "import builtins, sys\n"
        "load = builtins.__import__\n"
        "def interrupt(name, globals=None, locals=None, fromlist=(), level=0):\n"
        "    full = (globals['__package__'].rsplit('.', level - 1)[0] + '.' + name) if level else name\n"
        f"    if full == {module!r}: raise KeyboardInterrupt\n"
        "    return load(name, globals, locals, fromlist, level)\n"
        "from hybridiff.cli.main import main\n"
        "builtins.__import__ = interrupt\n"
        f"sys.exit(main({RING!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "hybridiff: interrupted; all ranks have been ended\n")


def test_python_m_is_the_command() -> None:
    command = [sys.executable, "-m", "hybridiff"]
    done = subprocess.run([*command, "draw"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "hybridiff: No such command 'draw'; see hybridiff --help\n")


def test_generate_has_35_flags() -> None:
    fields = dataclasses.fields(Generate)
    names = "model prompt prompts negative_prompt num_images seed height width num_inference_steps guidance_scale"
    names += (
        " scheduler arg devices shards strategy fidelity quality calibration set device dtype variant timeout output"
    )
    names += " fps image mask_image control_image lora controlnet model_config offload compile"
    assert {field.name for field in fields} == {*names.split(), "trace", "config"}
    assert len(fields) == 35


def test_displaced_messages_can_be_asked_for() -> None:
    given = config_of("--shards", "2", "--set", "displaced=true", "--set", "displaced-warm-up=2")
    assert given == ParallelConfig(devices=2, shards=2, displaced=True, displaced_warm_up=2)


def test_every_field_of_the_config_can_be_given() -> None:
    flags = ["--quality", "0.3", "--calibration", "a.json", "--timeout", "9", "--trace", "out/trace.json"]
    flags += ["--set", "simulate=true", "--devices", "4", "--shards", "1", "--strategy", "hybrid"]
    flags += ["--set", "step_kind=reuse", "--set", "tolerance=0.1", "--set", "full-steps=8", "--set", "outputs=all"]
    flags += ["--set", "slope_window=7", "--set", "published.slope_threshold=0.5"]
    flags += ["--set", "tau-cap=20", "--set", "parallel_steps=3", "--set", "displaced_warm_up=2"]
    assert config_of(*flags) == ParallelConfig(
        strategy="hybrid",
        devices=4,
        shards=1,
        quality="0.3",
        calibration="a.json",
        step_kind="reuse",
        tolerance=0.1,
        full_steps="8",
        displaced_warm_up=2,
        simulate=True,
        outputs="all",
        timeout=9.0,
        trace=True,
        published=PublishedSettings(slope_window=7, slope_threshold=0.5, parallel_steps=3, tau_cap=20),
    )
    given = config_of(*flags).to_dict()
    assert [name for name, value in ParallelConfig().to_dict().items() if given[name] == value] == [
        "fidelity",
        "displaced",
        "settings",
    ]


def test_settings_of_a_strategy_that_another_package_offers() -> None:
    flags = ["--strategy", "asyncdiff", "--set", "stride=2", "--set", "settings.warm-up=9", "--set", "outputs=all"]
    own = {"stride": 2, "warm_up": 9}
    assert config_of(*flags) == ParallelConfig(strategy="asyncdiff", devices=2, outputs="all", settings=own)
    assert config_of() == ParallelConfig(devices=2)


@pytest.mark.parametrize(
    ("flags", "strategy"),
    [
        ("", "cfg"),
        ("--devices 1", "serial"),
        ("--quality balanced", "hybrid"),
        ("--quality 0.3 --devices 1", "hybrid"),
        ("--calibration a.json", "hybrid"),
        ("--set tolerance=0.1", "hybrid"),
        ("--set step_kind=cached", "hybrid"),
        ("--set full_steps=0-4,8", "hybrid"),
        ("--set tau_cap=5", "published"),
        ("--set published.slope_window=3 --calibration a.json", "published"),
        ("--set outputs=all", "cfg"),
    ],
)
def test_a_setting_means_the_strategy_that_has_it(flags: str, strategy: str) -> None:
    assert config_of(*flags.split()).strategy == strategy
    if strategy in ("hybrid", "published"):
        assert config_of(*flags.split(), "--strategy", strategy).strategy == strategy


def test_serial_runs_on_one_device() -> None:
    assert config_of("--strategy", "serial").devices == 1
    assert config_of("--strategy", "hybrid").devices == 2


@pytest.mark.parametrize("command", ["generate", "inspect", "calibrate", "simulate", "study", "evaluate", "demo"])
def test_every_command_explains_itself(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"hybridiff {command} [OPTIONS]" in text
    assert "--device " in text
    assert "None" not in text
    assert "picture" not in text


def test_help_texts_are_those_of_the_fields(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["generate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in (*dataclasses.fields(ParallelConfig), *dataclasses.fields(PublishedSettings)):
        assert field.name == "published" or field.metadata["help"] in text
    assert "or a number from 0 (25 dB) to 1 (exact)" in text
    assert "published.tau_cap: " in text


def test_the_shell_completes_flags_and_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_HYBRIDIFF_COMPLETE", "complete_bash")
    for words, offered in {
        "hybridiff ": ["generate", "inspect", "calibrate", "simulate", "study", "bench", "evaluate", "demo"],
        "hybridiff generate --num": ["--num-inference-steps", "--num-images"],
        "hybridiff generate --scheduler dpm": ["dpmsolver++", "dpmsolver++-sde"],
        "hybridiff generate --set st": ["step_kind="],
    }.items():
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        with pytest.raises(SystemExit):
            main([])
        assert sorted(capsys.readouterr().out.split()) == sorted(offered)


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from hybridiff.cli.main import main; main(['--version']); main(['generate', '--help'])\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'matplotlib', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("hybridiff 0.1.0", "[]")
