"""Two launchers, as on two machines, with two ranks each: one group of four, one picture."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.distributed

GENERATE = ["-m", "hybridiff", "generate", "--model", "tiny-sdxl", "--prompt", "a red ring", "--device", "cpu"]
GENERATE += ["--num-inference-steps", "4", "--seed", "3", "--shards", "2"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(node: int, port: int, output: Path) -> subprocess.Popen[str]:
    """One launcher of two."""
    where = ["--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "2"]
    where += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *where, *GENERATE, "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_four_ranks_of_two_machines_draw_one_picture(tmp_path: Path) -> None:
    port = free_port()
    launchers = [launch(node, port, tmp_path / f"{node}.png") for node in range(2)]
    printed = [launcher.communicate(timeout=150) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], printed
    assert "cfg on 4 devices, 2 a picture" in printed[0][0]
    assert printed[1][0] == "", "rank 0 alone tells"
    report = json.loads((tmp_path / "0.json").read_text())
    assert (report["devices"], report["partition"]["shards"]) == (4, 2)
    one = [sys.executable, *GENERATE[:-2], "--devices", "1", "--output", str(tmp_path / "one.png")]
    subprocess.run(one, check=True, capture_output=True, timeout=150)
    drawn, alone = (np.asarray(Image.open(tmp_path / f"{name}.png"), dtype=int) for name in ("0", "one"))
    assert abs(drawn - alone).max() <= 1
