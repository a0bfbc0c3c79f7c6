"""An Engine's processes: none of them is ever left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridiff import Engine
from hybridiff.launch import launcher
from hybridiff.models.loading import find_model
from support.engines import PROMPT, SOURCE, start, wait_for_end
from support.forking import server_pid

pytestmark = pytest.mark.distributed


def test_a_model_that_cannot_be_loaded_is_one_value_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(find_model("tiny-sdxl").path, broken)
    (broken / "vae" / "config.json").unlink()
    started: list[int] = []
    real = launcher.start_rank

    def remember(*args: Any) -> Any:
        process = real(*args)
        started.append(process.pid)
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "start_rank", remember)
        with pytest.raises(ValueError, match="cannot load a pipeline from"):
            Engine(broken, 2, device="cpu")
    assert len(started) == 2
    assert wait_for_end(started, 1.0) == []


PARENT = """
import signal
from hybridiff import Engine
from hybridiff.launch.processes import _fork_servers
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
engine = Engine("tiny-sdxl", 2, device="cpu")
print(*engine.pids, *([_fork_servers._server._process.pid] if _fork_servers._server else []), flush=True)
engine.generate("a red ring", num_inference_steps=1000, on_step=lambda done, total: print(done, flush=True))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_ranks_end_with_their_parent(end: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == (3 if sys.platform == "linux" else 2)
        assert parent.stdout.readline() == "1\n"  # into the generation
        parent.send_signal(end)
        assert parent.wait(20.0) == -end
    assert wait_for_end(pids) == []


def test_a_command_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    flags = ["--model", "tiny-sdxl", "--prompt", PROMPT, "--num-inference-steps", "1000", "--device", "cpu"]
    command = [sys.executable, "-m", "hybridiff", "generate", *flags, "--output", str(tmp_path / "ring.png")]
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as ended:
        assert ended.stderr is not None
        said = b""
        while b"/1000" not in said:  # into the generation
            said += os.read(ended.stderr.fileno(), 1024) or pytest.fail(said.decode())
        assert list(tmp_path.glob("hybridiff-*"))
        ended.send_signal(signal.SIGTERM)
        assert ended.wait(20.0) == 143
    assert list(tmp_path.glob("hybridiff-*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked on Linux only")
def test_engines_of_a_process_share_a_fork_server_and_outlive_it() -> None:
    with start() as first, start() as second:
        server = server_pid()
        parents = [
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in first.pids + second.pids
        ]
        assert parents == [str(server)] * 4
        assert os.listdir(f"/proc/{server}/task") == [str(server)]
        images = [engine.generate(PROMPT, seed=3, num_inference_steps=2).images[0] for engine in (first, second)]
        assert images[0] == images[1]
        ended = first.pids + second.pids
        os.kill(server, signal.SIGKILL)
        assert wait_for_end([server]) == []
        assert first.generate(PROMPT, seed=3, num_inference_steps=2).images[0] == images[0]
        assert server_pid() != server
        assert second.pids == []
        assert wait_for_end(ended, 5.0) == []


def test_joins_the_ranks_of_torchrun(tmp_path: Path) -> None:
    image = tmp_path / "ring.png"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = ["--model", "tiny-sdxl", "--prompt", PROMPT, "--num-inference-steps", "3", "--output", str(image)]
    done = subprocess.run(
        [*torchrun, "-m", "hybridiff", "generate", *flags, "--device", "cpu"],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cfg on 2 devices") == 1
    report = json.loads(image.with_suffix(".json").read_text())
    assert (report["devices"], len(report["steps"])) == (2, 3)
    assert image.stat().st_size > 0
