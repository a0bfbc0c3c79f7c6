"""How long engines take to start: the table, from runs that are made up."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from benchmarks import startup


def test_medians_of_runs_in_turns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    models: list[str] = []

    def run(command: list[str], **_: Any) -> Any:
        models.append(command[command.index("--models") + 1])
        found = {"import": 0.1, "engine 1": float(len(models)), "engine 2": 0.25, "memory": 600.0}
        return subprocess.CompletedProcess(command, 0, json.dumps(found).encode())

    monkeypatch.setattr(subprocess, "run", run)
    startup.main(["--repeats", "3"])
    assert models == ["tiny-sdxl", "tiny-sd3"] * 3
    head, sdxl, sd3 = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "import", "engine", "1", "engine", "2", "memory"]
    assert sdxl.split() == ["tiny-sdxl", "0.10", "s", "3.00", "s", "0.25", "s", "600", "MB"]
    assert sd3.split()[3] == "4.00"


def test_memory_is_that_of_ranks_and_their_server() -> None:
    child = subprocess.Popen(["sleep", "20"])
    try:
        assert startup._family([child.pid]) == {child.pid}  # without a server they are our own
        assert startup._family([os.getpid()]) == {os.getpid(), os.getppid()}
        assert 1.0 < startup._memory(os.getpid()) < 1e5
    finally:
        child.kill()
        child.wait()
