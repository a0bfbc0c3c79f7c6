"""`parallelize` under torchrun where nobody made a process group, as in the README's own example."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

SCRIPT = """
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


def test_torchrun_ranks_find_each_other(tmp_path: Path) -> None:
    script = tmp_path / "draw.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    found = subprocess.run(
        torchrun, capture_output=True, text=True, timeout=150, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert found.returncode == 0, found.stderr
    lines = sorted(line for line in found.stdout.splitlines() if line.startswith("devices"))
    assert lines == ["devices 2 leader False", "devices 2 leader True"]
