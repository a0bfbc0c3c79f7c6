"""Processes of ranks: what a fork server gives, and what there is without one."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybridiff.distributed.placement import Placement
from hybridiff.launch import processes
from hybridiff.launch.processes import Forked
from support.engines import SOURCE, TESTS, is_alive, wait_for_end
from support.forking import FAULT, IDLE, Rank, command, server_pid

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ranks are forked on Linux only")


@pytest.fixture(autouse=True)
def _quick_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(processes, "_command", command)
    monkeypatch.setattr(processes, "_fork_servers", processes._ForkServers())


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "rank.log"


def test_ranks_are_forked_by_one_server_into_sessions_of_their_own(log: Path) -> None:
    ranks = [Rank(log) for _ in range(3)]
    pids = [rank.process.pid for rank in ranks]
    assert len(set(pids)) == 3
    for rank in ranks:
        assert isinstance(rank.process, Forked)
        assert rank.process.poll() is None
        assert rank.ask("(os.getpid(), os.getppid())") == (rank.process.pid, server_pid())
        assert rank.ask("(os.getsid(0), os.getpgid(0))") == (rank.process.pid, rank.process.pid)
        assert rank.ask("os.readlink('/proc/self/fd/0')") == os.devnull
        rank.hang_up()
        assert rank.process.wait(10.0) == rank.process.poll() == 0
    assert wait_for_end(pids, 1.0) == []
    assert is_alive(server_pid())


def test_a_rank_has_its_own_log_and_nothing_of_others(tmp_path: Path) -> None:
    ranks = [Rank(tmp_path / f"{number}.log") for number in range(3)]
    for number, rank in enumerate(ranks):
        rank.ask(f"print('rank', {number}, flush=True)")
        rank.ask("os.system('echo a child >&2')")
        assert rank.log.read_text() == f"rank {number}\na child\n"
    assert len({rank.ask("len(os.listdir('/proc/self/fd'))") for rank in ranks}) == 1


def test_ranks_draw_different_numbers(log: Path) -> None:
    draws = "(random.random(), __import__('numpy').random.rand())"
    ours, theirs = (Rank(log).ask(draws) for _ in range(2))
    assert ours[0] != theirs[0]
    assert ours[1] != theirs[1]


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [("sys.exit(3)", 3, ""), ("1 / 0", 1, "ZeroDivisionError"), ("os.kill(os.getpid(), signal.SIGSEGV)", -11, "")],
)
def test_the_parent_learns_how_a_rank_ended(log: Path, end: str, code: int, said: str) -> None:
    rank, other = Rank(log), Rank(log.with_name("other.log"))
    with pytest.raises(subprocess.TimeoutExpired):
        rank.process.wait(0.01)
    rank.tell(end)
    assert rank.process.wait(10.0) == code
    assert said in log.read_text()
    rank.process.kill()  # of one that has ended: nothing
    assert rank.process.poll() == code
    other.process.kill()
    assert other.process.wait(10.0) == -signal.SIGKILL


def test_nobody_waits_for_a_server_that_does_nothing(log: Path) -> None:
    rank, stopped = Rank(log), server_pid()
    os.kill(stopped, signal.SIGSTOP)
    try:
        rank.process.kill()
        assert rank.process.wait() == -signal.SIGKILL
        other = Rank(log)
        assert server_pid() != stopped
        other.process.kill()
        assert other.process.wait(10.0) == -signal.SIGKILL
    finally:
        os.kill(stopped, signal.SIGCONT)


def test_ranks_of_many_threads_come_from_one_server(tmp_path: Path) -> None:
    ranks: list[Rank] = []

    def work(number: int) -> None:
        ranks.append(Rank(tmp_path / f"{number}.log"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({rank.process.pid for rank in ranks}) == 8
    assert {rank.ask("os.getppid()") for rank in ranks} == {server_pid()}
    codes: list[int] = []  # many may wait for one end
    waiting = [threading.Thread(target=lambda: codes.append(ranks[0].process.wait(10.0))) for _ in range(4)]
    for thread in waiting:
        thread.start()
    ranks[0].tell("sys.exit(5)")
    for thread in waiting:
        thread.join()
    assert codes == [5] * 4


def test_other_surroundings_need_another_server(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = "(os.getcwd(), os.environ.get('HF_HOME'), sorted(os.sched_getaffinity(0)), sys.path[0])"
    old = Rank(log)
    assert old.ask("os.environ['OMP_NUM_THREADS']") == "1"
    before = server_pid()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "elsewhere")
    new = Rank(log)
    assert new.ask(seen) == (str(tmp_path), "elsewhere", sorted(os.sched_getaffinity(0)), str(tmp_path))
    assert server_pid() != before
    assert old.ask("1 + 1") == 2  # goes on, and its server with it
    old.hang_up()
    assert old.process.wait(10.0) == 0
    del old
    assert wait_for_end([before], 5.0) == []
    assert new.ask("1 + 1") == 2


def test_a_server_that_died_takes_its_ranks_along_and_is_replaced(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    rank, before = Rank(log), server_pid()
    os.kill(before, signal.SIGKILL)
    assert rank.process.wait(10.0) == -signal.SIGKILL
    assert wait_for_end([rank.process.pid], 5.0) == []
    assert Rank(log).ask("os.getppid()") == server_pid() != before
    assert not caplog.records


def test_a_server_without_ranks_ends_by_itself_and_is_replaced(
    log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(IDLE, "0.2")
    rank = Rank(log)
    before = server_pid()
    assert wait_for_end([before], 1.0) == [before], "it has a rank"
    rank.hang_up()
    assert rank.process.wait(10.0) == 0
    assert wait_for_end([before], 10.0) == []
    assert Rank(log).ask("os.getppid()") == server_pid() != before
    assert rank.process.poll() == 0
    assert not caplog.records


def test_a_server_that_ends_with_a_request_unread_is_replaced(
    log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(FAULT, f"late {log.with_name('flag')}")
    server = processes._fork_servers.prepare()
    assert Rank(log).ask("os.getppid()") == server_pid() != server._process.pid
    assert server._process.returncode == 0
    assert not caplog.records


def test_a_server_that_ends_just_before_a_request_is_replaced(
    log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(IDLE, "0")
    server = processes._fork_servers.prepare()
    assert wait_for_end([server._process.pid], 30.0) == []
    checked = iter([True])
    monkeypatch.setattr(type(server), "is_alive", property(lambda self: next(checked, self._process.poll() is None)))
    assert Rank(log).ask("os.getppid()") == server_pid() != server._process.pid
    assert not caplog.records


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("error", "ImportError: torch is broken"),
        ("thread", "imports started 1 threads"),
        ("silent", "no sign of life for 1 s"),
    ],
)
def test_without_a_server_ranks_start_from_scratch(
    log: Path, fault: str, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(FAULT, fault)
    with caplog.at_level(logging.WARNING, "hybridiff"):
        ranks = [Rank(log, timeout=1.0 if fault == "silent" else 30.0) for _ in range(2)]
    assert [record.message.count(reason) for record in caplog.records] == [1]
    assert processes._fork_servers._server is None
    for rank in ranks:
        assert isinstance(rank.process, subprocess.Popen)
        assert rank.ask("(os.getppid(), os.getsid(0))") == (os.getpid(), rank.process.pid)
        rank.hang_up()
        assert rank.process.wait(10.0) == 0


def test_ranks_on_gpus_are_not_forked(log: Path) -> None:
    rank = Rank(log, device="cuda:0")
    assert isinstance(rank.process, subprocess.Popen)
    assert rank.ask("'OMP_NUM_THREADS' in os.environ") == ("OMP_NUM_THREADS" in os.environ)
    rank.hang_up()
    rank.process.wait(10.0)


@pytest.mark.parametrize("how", ["os._exit", "SIGKILL", "error", "end"])
def test_nothing_outlives_the_parent(how: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(SOURCE), str(TESTS)))}
    command = [sys.executable, "-W", "error", "-m", "support.forking", "parent", how]
    parent = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30.0)
    pids = [int(pid) for pid in parent.stdout.split()]
    assert len(pids) == 3
    assert wait_for_end(pids, 5.0) == []
    assert ("as it was told" in parent.stderr) if how == "error" else (parent.stderr == "")


def test_a_fork_of_the_parent_leaves_ranks_alone(log: Path) -> None:
    rank = Rank(log)
    pid = os.fork()
    if pid == 0:
        rank.process.kill()
        processes._fork_servers.release()
        os._exit(rank.process.wait(1.0))
    assert os.waitpid(pid, 0)[1] == 0
    assert rank.process.poll() is None
    assert rank.ask("os.getppid()") == server_pid()


@pytest.mark.parametrize(("found", "remains"), [("cpu", True), ("cuda:0", False)])
def test_a_server_begins_while_gpus_are_counted(found: str, remains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Placement.resolve(2, "cpu")
    begun: list[int] = []

    def resolve(*_: Any) -> Placement:
        begun.append(server_pid())
        return replace(place, device=found)

    monkeypatch.setattr(Placement, "resolve", resolve)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert processes.find_placement(2, "auto", False).device == found
    assert len(begun) == 1
    time.sleep(0.1)
    assert is_alive(begun[0]) == remains
