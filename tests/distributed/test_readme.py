"""What the README tells to type works as it stands there, with the embedded models."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()

pytestmark = pytest.mark.distributed

PRELUDE = """
import torch
from hybridiff import load_pipeline

pipe, generator = load_pipeline("tiny-sdxl"), torch.Generator().manual_seed(0)
"""


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, as they stand."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def run(command: list[str], folder: Path) -> str:
    search_path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search_path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line(tmp_path: Path) -> None:
    commands = [line for block in blocks("") for line in block.replace("\\\n", " ").splitlines()]
    (generate,) = [line for line in commands if line.startswith("hybridiff generate --model tiny-sdxl")]
    told = run([sys.executable, "-m", *shlex.split(generate)], tmp_path)
    assert told.startswith("hybrid on 2 devices: 50 steps")
    assert (tmp_path / "out" / "image.png").stat().st_size > 0
    assert (tmp_path / "out" / "image.json").is_file()


def test_the_script_with_an_engine(tmp_path: Path) -> None:
    (script,) = [block for block in blocks("python") if "Engine(" in block]
    (tmp_path / "script.py").write_text(script + "\nimage.save('image.png')\n")
    run([sys.executable, "script.py"], tmp_path)
    assert (tmp_path / "image.png").stat().st_size > 0


def test_the_script_under_torchrun(tmp_path: Path) -> None:
    (script,) = [block for block in blocks("python") if "parallelize(" in block]
    told = "import os; os.write(1, f'{parallel.report.devices} {images is not None}\\n'.encode())"  # one line at once
    (tmp_path / "script.py").write_text(f"{PRELUDE}{script}\n{told}\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    assert sorted(run(torchrun, tmp_path).split("\n"))[-2:] == ["2 False", "2 True"]


def test_every_page_that_is_named_is_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
