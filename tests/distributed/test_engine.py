"""The Engine's processes: they answer, they fail with one clear error, and none of them is ever left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridiff import Engine, EngineError, ParallelConfig, load_pipeline
from hybridiff.evaluation.metrics import psnr
from hybridiff.models.loading import find_model
from support.faults import raise_on_rank_1, stall_on_rank_1

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

PROMPT = "a large red ring on a white background"
TESTS = Path(__file__).parent.parent
SOURCE = TESTS.parent / "src"


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_for_end(pids: list[int], seconds: float = 20.0) -> list[int]:
    """The processes that are still alive at the deadline."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [pid for pid in pids if is_alive(pid)]


def start(**options: Any) -> Engine:
    return Engine("tiny-sdxl", 2, ParallelConfig(strategy="cfg"), device="cpu", **options)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with start() as engine:
        yield engine


@pytest.fixture
def reachable_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ranks import the callbacks of tests/support."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)


def test_draws_what_the_stock_pipeline_draws(engine: Engine) -> None:
    import torch

    pipe = load_pipeline("tiny-sdxl")
    pipe.set_progress_bar_config(disable=True)
    stock = pipe(PROMPT, num_inference_steps=4, generator=torch.Generator().manual_seed(3)).images[0]
    steps: list[tuple[int, int]] = []
    ours = engine.generate(PROMPT, seed=3, num_inference_steps=4, on_step=lambda *step: steps.append(step))
    assert psnr(ours.images[0], stock) > 50.0
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (ours.report.strategy, ours.report.devices, len(ours.report.steps)) == ("cfg", 2, 4)


def test_seed_decides_the_picture_and_is_told(engine: Engine) -> None:
    drawn = engine.generate(PROMPT, num_inference_steps=2)
    again = engine.generate(PROMPT, seed=drawn.seed, num_inference_steps=2)
    other = engine.generate(PROMPT, seed=drawn.seed + 1, num_inference_steps=2)
    assert np.array_equal(drawn.images[0], again.images[0])
    assert not np.array_equal(drawn.images[0], other.images[0])


def test_several_pictures_and_tensors_travel(engine: Engine) -> None:
    assert len(engine.generate(PROMPT, seed=0, num_inference_steps=2, num_images_per_prompt=3).images) == 3
    latents = engine.generate(PROMPT, seed=0, num_inference_steps=2, output_type="latent").images
    assert latents.shape[0] == 1
    assert latents.device.type == "cpu"


def test_bad_input_on_all_ranks_is_one_value_error_and_the_engine_goes_on(engine: Engine) -> None:
    before = engine.pids
    with pytest.raises(ValueError, match="Cannot leave both"):
        engine.generate(None, num_inference_steps=2)
    with pytest.raises(ValueError, match="height must be a positive multiple of 8"):
        engine.generate(PROMPT, height=100)
    assert engine.generate(PROMPT, num_inference_steps=2).images
    assert engine.pids == before


def test_a_killed_rank_is_named_and_nothing_is_left() -> None:
    engine = start()
    pids = engine.pids

    def kill_rank_1(done: int, total: int) -> None:
        if done == 2:
            os.kill(pids[1], signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(EngineError, match=r"rank 1 was killed by SIGKILL.*while generating after step \d+ of 500"):
        engine.generate(PROMPT, num_inference_steps=500, on_step=kill_rank_1)
    assert time.monotonic() - started < 30.0
    assert wait_for_end(pids, 1.0) == []
    assert engine.pids == []
    with pytest.raises(EngineError, match="make a new Engine"):
        engine.generate(PROMPT)
    engine.close()


@pytest.mark.usefixtures("reachable_faults")
def test_an_error_on_one_rank_is_told_with_rank_and_step() -> None:
    with start() as engine:
        pids = engine.pids
        with pytest.raises(EngineError, match=r"rank 1 failed in .*step 2.*RuntimeError: the lamp went out"):
            engine.generate(PROMPT, num_inference_steps=50, callback_on_step_end=raise_on_rank_1)
        assert wait_for_end(pids, 1.0) == []


@pytest.mark.usefixtures("reachable_faults")
def test_a_silent_rank_meets_the_deadline() -> None:
    with start(timeout=4.0) as engine:
        pids = engine.pids
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"no sign of life from rank 1.* 4 s"):
            engine.generate(PROMPT, num_inference_steps=50, callback_on_step_end=stall_on_rank_1)
        assert time.monotonic() - started < 40.0
        assert wait_for_end(pids, 1.0) == []


def test_ctrl_c_ends_the_ranks() -> None:
    engine = start()
    pids = engine.pids

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, num_inference_steps=50, on_step=interrupt)
    assert wait_for_end(pids, 1.0) == []


def test_a_model_that_cannot_be_loaded_is_one_value_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(find_model("tiny-sdxl").path, broken)
    (broken / "vae" / "config.json").unlink()
    started: list[int] = []
    real = subprocess.Popen.__init__

    def remember(process: Any, *args: Any, **kwargs: Any) -> None:
        real(process, *args, **kwargs)
        started.append(process.pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", remember)
        with pytest.raises(ValueError, match="cannot load a pipeline from"):
            Engine(broken, 2, device="cpu")
    assert len(started) == 2
    assert wait_for_end(started, 1.0) == []


PARENT = """
import time
from hybridiff import Engine
engine = Engine("tiny-sdxl", 2, device="cpu")
print(*engine.pids, flush=True)
engine.generate("a red ring", num_inference_steps=100000)
"""


def test_ranks_end_with_their_parent() -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(1.0)  # into the generation
        parent.kill()
    assert wait_for_end(pids) == []


def test_joins_the_ranks_of_torchrun(tmp_path: Path) -> None:
    picture = tmp_path / "ring.png"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = ["--model", "tiny-sdxl", "--prompt", PROMPT, "--num-inference-steps", "3", "--output", str(picture)]
    done = subprocess.run(
        [*torchrun, "-m", "hybridiff", "generate", *flags, "--device", "cpu"],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cfg on 2 devices") == 1
    report = json.loads(picture.with_suffix(".json").read_text())
    assert (report["devices"], len(report["steps"])) == (2, 3)
    assert picture.stat().st_size > 0
