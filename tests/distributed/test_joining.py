"""Scripts under torchrun in which nobody made a process group, as in the README's own example."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

PARALLELIZE = """
import sys
import torch, torch.distributed as dist
from hybridiff import ParallelConfig, load_pipeline, parallelize

pipe = load_pipeline("tiny-sdxl")
parallel = parallelize(pipe, ParallelConfig(strategy="hybrid", timeout=60))
assert dist.is_initialized()
latents = parallel("a red ring", num_inference_steps=4, output_type="latent", generator=torch.manual_seed(0)).images
sys.stdout.write(f"devices {parallel.report.devices} leader {latents is not None}\\n")
parallel = parallelize(pipe, ParallelConfig(timeout=60))  # in place of the first: leaves its group, joins anew
parallel("a red ring", num_inference_steps=2, output_type="latent", generator=torch.manual_seed(0))
parallel.detach()
assert not dist.is_initialized()
"""

ENGINE = """
import sys
import torch.distributed as dist
from hybridiff import Engine, EngineError, ParallelConfig

def fail(done, total):
    raise KeyError("the caller's own")

with Engine("tiny-sdxl", config=ParallelConfig(timeout=60), device="cpu") as engine:
    assert (engine.config.devices, engine.pids, engine.is_leader) == (2, [], dist.get_rank() == 0)
    try:
        engine.generate("a red ring", num_inference_steps=4, on_step=fail)
    except KeyError:
        assert engine.is_leader
    except EngineError as error:
        assert not engine.is_leader and "rank 0 failed" in str(error)
    # No pickling here, and a seed that nobody gave.
    generated = engine.generate("a red ring", num_inference_steps=2, callback_on_step_end=lambda *step: step[-1])
    sys.stdout.write(f"seed {generated.seed} leader {generated.images is not None}\\n")
assert not dist.is_initialized()
"""


def under_torchrun(script: Path, text: str, *arguments: str) -> list[str]:
    """What two ranks of a script print, in order of the alphabet."""
    script.write_text(text)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        *arguments,
    ]
    found = subprocess.run(
        torchrun, capture_output=True, text=True, timeout=150, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert found.returncode == 0, found.stderr
    return sorted(found.stdout.splitlines())


def test_parallelize_joins_the_ranks_of_torchrun_and_leaves_them(tmp_path: Path) -> None:
    lines = under_torchrun(tmp_path / "script.py", PARALLELIZE)
    assert lines == ["devices 2 leader False", "devices 2 leader True"]


def test_an_engine_joins_the_ranks_of_torchrun_and_leaves_them(tmp_path: Path) -> None:
    others, leaders = under_torchrun(tmp_path / "script.py", ENGINE)
    assert others.split(" leader ")[0] == leaders.split(" leader ")[0]  # the seed
    assert (others.split()[-1], leaders.split()[-1]) == ("False", "True")


ALONE = """
import os, sys
import torch, torch.distributed as dist
from hybridiff import CommError, ParallelConfig, load_pipeline, parallelize
from hybridiff.distributed.placement import join_torchrun

comes, message = sys.argv[1] == "comes", sys.argv[2]
pipe = load_pipeline("tiny-sdxl")
if os.environ["RANK"] == "1":
    if comes:
        join_torchrun(torch.device("cpu"), 60)
    os._exit(0)
try:
    parallelize(pipe, ParallelConfig(timeout=2))
except CommError as error:
    assert message in str(error), error
else:
    raise AssertionError("shares with a rank that is gone")
assert not dist.is_initialized()
"""


@pytest.mark.parametrize(
    ("other", "message"),
    [("stays away", "rank 0 did not find the other 1 within 2 s"), ("comes", "did not form a group")],
)
def test_a_rank_that_is_not_there_is_an_error_that_leaves_nothing(tmp_path: Path, other: str, message: str) -> None:
    assert under_torchrun(tmp_path / "script.py", ALONE, other, message) == []
