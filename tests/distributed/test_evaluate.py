"""`hybridiff evaluate` with ranks: stopped by Ctrl-C it keeps what is done, and goes on with the same images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.engines import SOURCE

pytestmark = pytest.mark.distributed


def start(output: Path, *further: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hybridiff", "evaluate", "--model", "tiny-sdxl", "--device", "cpu"]
    command += ["--num-inference-steps", "4", "--limit", "2", "--strategies", "cfg", "--output", str(output), *further]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def test_ctrl_c_loses_no_image(tmp_path: Path) -> None:
    first = start(tmp_path)
    deadline = time.monotonic() + 100
    while not (tmp_path / "serial" / "00001.png").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    assert "interrupted; all ranks have been ended" in first.communicate(timeout=60)[1]
    assert first.returncode == 130
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.png")}
    assert 1 <= len(done) < 4
    second = start(tmp_path)
    said, errors = second.communicate(timeout=150)
    assert second.returncode == 0, errors
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert [(row["strategy"], row["images"], row["full_steps"]) for row in rows] == [
        ("serial", 2, 4.0),
        ("cfg", 2, 4.0),
    ]
    assert rows[1]["psnr"] > 60  # the same images, to rounding
    assert "index.html" in said
