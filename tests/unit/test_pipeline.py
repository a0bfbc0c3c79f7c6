"""What `parallelize` attaches and leaves, what it reads, and whose errors it raises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from hybridiff import Engine, ParallelConfig, ParallelPipeline, RankError, UsageError, parallelize
from hybridiff.distributed.comm import LocalComm
from hybridiff.schedule.calibration import Calibration
from support.calibrations import ENTRY, calibration_file, entry_with
from support.oracles import differences, generated_one_part_after_another, state_of
from support.pipelines import build, generate
from support.schedules import callback_at

NAME = "sdxl two levels"
STEPS = {"num_inference_steps": 10}


def simulate(name: str = NAME, strategy: str = "cfg", **config: Any) -> ParallelPipeline:
    return parallelize(build(name), ParallelConfig(strategy, simulate=True, **config))


def test_devices_that_were_not_started_are_refused() -> None:
    with pytest.raises(UsageError, match="2 ranks requested, 1 started; use devices=1, or start 2"):
        parallelize(build(NAME), ParallelConfig(strategy="serial", devices=2))


def test_nothing_is_attached_where_parallelize_is_refused() -> None:
    pipe = build(NAME)
    before = state_of(pipe)
    for config in (
        ParallelConfig("published", simulate=True, devices=3),
        ParallelConfig("hybrid", calibration="/no/such/file"),
    ):
        with pytest.raises(UsageError):
            parallelize(pipe, config)
    assert differences(before, state_of(pipe)) == []


def test_a_second_parallelize_takes_the_place_of_the_first() -> None:
    pipe = build(NAME)
    first = parallelize(pipe, ParallelConfig(simulate=True))
    second = parallelize(pipe, ParallelConfig(simulate=True))
    assert torch.equal(generate(second, NAME), generated_one_part_after_another(NAME))
    with pytest.raises(UsageError, match="this pipeline was detached; call parallelize"):
        generate(first, NAME)
    first.detach()  # which it is already
    assert torch.equal(generate(second, NAME), generated_one_part_after_another(NAME))
    second.detach()
    assert not hasattr(pipe.unet, "_diffusers_hook")


@pytest.mark.parametrize("strategy", ["cfg", "hybrid", "published"])
def test_a_second_parallelize_after_a_call_that_failed(strategy: str) -> None:
    pipe = build("sd3")
    parallel = parallelize(pipe, ParallelConfig(strategy, simulate=True))
    with pytest.raises(RuntimeError, match="planted"):
        generate(parallel, "sd3", callback_on_step_end=callback_at(1, planted(RuntimeError("planted"))))
    with parallelize(pipe, ParallelConfig(simulate=True)) as again:
        assert torch.equal(generate(again, "sd3"), generated_one_part_after_another("sd3"))
    assert torch.equal(generate(pipe, "sd3"), generate(build("sd3"), "sd3"))


def planted(error: BaseException) -> Callable[[Any], None]:
    """An action that fails."""

    def fail(_: Any) -> None:
        raise error

    return fail


def test_leaving_the_block_by_an_error_detaches() -> None:
    pipe = build(NAME)
    with pytest.raises(KeyError), parallelize(pipe, ParallelConfig(simulate=True)):
        raise KeyError
    assert not hasattr(pipe.unet, "_diffusers_hook")


@pytest.mark.parametrize("strategy", ["cfg", "hybrid"])
def test_a_process_alone_says_that_nothing_is_shared(strategy: str) -> None:
    parallel = parallelize(build(NAME), ParallelConfig(strategy))
    generate(parallel, NAME)
    assert [note for note in notes_of(parallel) if "nothing is shared: this is the only rank" in note]


@pytest.mark.parametrize(
    "config",
    [{"strategy": "serial"}, {"strategy": "hybrid", "devices": 1}, {"strategy": "hybrid", "simulate": True}],
    ids=str,
)
def test_nothing_is_said_where_one_process_is_meant(config: dict[str, Any]) -> None:
    parallel = parallelize(build(NAME), ParallelConfig(**config))
    generate(parallel, NAME)
    assert not [note for note in notes_of(parallel) if "nothing is shared" in note]


def notes_of(parallel: ParallelPipeline) -> list[str]:
    assert parallel.report is not None
    return parallel.report.notes


# The calibration is read when the pipeline is made parallel, and not again.


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that calibrations were read from."""
    found: list[Path] = []
    read = Calibration.read.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Calibration], path: Path) -> Calibration:
        found.append(path)
        return read(cls, path)  # type: ignore[no-any-return]

    monkeypatch.setattr(Calibration, "read", classmethod(counted))
    return found


def gone(path: Path) -> None:
    path.unlink()


def another(path: Path) -> None:
    published = replace(ENTRY.published, tau_cap=1, parallel_steps=1)
    other = replace(ENTRY, bands=(replace(ENTRY.bands[0], tolerances=((0.0, 0.0),)),), published=published)
    Calibration("someone/else", (other,), {"reuse": 0, "pipelined": 0}).write(path)


def nonsense(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize("change", [gone, another, nonsense])
@pytest.mark.parametrize(("strategy", "kind"), [("hybrid", "cached"), ("hybrid", "reuse"), ("published", "cached")])
def test_a_call_does_not_notice_what_happens_to_the_file(
    strategy: str, kind: str, change: Callable[[Path], None], tmp_path: Path, reads: list[Path]
) -> None:
    file = calibration_file(tmp_path, entry_with(kind, num_inference_steps=10))
    with simulate("sd3", strategy, **file) as parallel:
        expected = generate(parallel, "sd3", **STEPS)
        notes = notes_of(parallel)
    reads.clear()
    with simulate("sd3", strategy, **file) as parallel:
        assert reads == [tmp_path / "calibration.json"]
        change(tmp_path / "calibration.json")
        for _ in range(2):
            assert torch.equal(generate(parallel, "sd3", **STEPS), expected)
            assert notes_of(parallel) == notes
    assert len(reads) == 1


def test_a_calibration_in_memory_is_not_read(tmp_path: Path, reads: list[Path]) -> None:
    entry = entry_with("cached", num_inference_steps=10)
    with simulate("sd3", "hybrid", **calibration_file(tmp_path, entry)) as parallel:
        expected = generate(parallel, "sd3", **STEPS)
    reads.clear()
    with simulate("sd3", "hybrid", calibration=Calibration("someone/a-model", (entry,))) as parallel:
        assert torch.equal(generate(parallel, "sd3", **STEPS), expected)
    assert reads == []


# Users' mistakes are UsageErrors; every other error is raised as it was.


class Unprintable:
    """Something that cannot be described."""

    def __repr__(self) -> str:
        raise ValueError("a fault of this object")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"callback_on_step_end": callback_at(1, planted(ValueError("planted")))}, ValueError("planted")),
        ({"callback_on_step_end": callback_at(1, planted(TypeError("planted")))}, TypeError("planted")),
        ({"cross_attention_kwargs": {"scale": Unprintable()}}, ValueError("a fault of this object")),
        ({"height": 33}, ValueError("`height` and `width` have to be divisible by 8")),
        ({"prompt": None}, ValueError("Provide either `prompt` or `prompt_embeds`")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else next(iter(value)),
)
@pytest.mark.parametrize("strategy", ["serial", "cfg", "hybrid", "published"])
def test_errors_that_are_not_ours_stay_what_they_are(strategy: str, changes: dict[str, Any], error: Exception) -> None:
    parallel = simulate(strategy=strategy)
    with pytest.raises(type(error), match=str(error)) as caught:
        generate(parallel, NAME, **changes)
    assert type(caught.value) is type(error)
    assert torch.equal(generate(parallel, NAME), generate(simulate(strategy=strategy), NAME))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"hight": 32},
            "StableDiffusion3Pipeline cannot be called that way: got an unexpected keyword argument 'hight'",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer from 1 to 10000, got 0"),
    ],
    ids=str,
)
def test_users_mistakes_are_usage_errors(changes: dict[str, Any], sentence: str) -> None:
    with simulate("sd3") as parallel, pytest.raises(UsageError, match=sentence):
        generate(parallel, "sd3", **changes)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("strategy", ["cfg", "hybrid", "published"])
def test_an_end_from_outside_leaves_the_pipeline_in_order(strategy: str, error: BaseException) -> None:
    parallel = simulate("sd3", strategy)
    with pytest.raises(type(error)):
        generate(parallel, "sd3", callback_on_step_end=callback_at(1, planted(error)))
    assert parallel.report is None
    assert torch.equal(generate(parallel, "sd3"), generate(simulate("sd3", strategy), "sd3"))


@pytest.mark.parametrize("from_a_thread", [False, True])
def test_a_call_within_another_one_is_refused_before_anything_is_touched(from_a_thread: bool) -> None:
    parallel, refused = simulate("sd3"), []

    def call_again(_: Any) -> None:
        with pytest.raises(UsageError, match="this pipeline is in a call already") as error:
            generate(parallel, "sd3", seed=4)
        refused.append(error)

    def call(pipe: Any) -> None:
        if from_a_thread:
            thread = threading.Thread(target=call_again, args=(pipe,))
            thread.start()
            thread.join()
        else:
            call_again(pipe)

    expected = generate(parallel, "sd3")
    assert torch.equal(generate(parallel, "sd3", callback_on_step_end=callback_at(1, call)), expected)
    assert len(refused) == 1
    assert torch.equal(generate(parallel, "sd3"), expected)


def test_a_rank_error_is_no_usage_error() -> None:
    assert not issubclass(RankError, ValueError)
    assert not issubclass(UsageError, RankError)


def test_the_stock_pipeline_called_directly_runs_alone() -> None:
    with simulate() as parallel:
        assert torch.equal(generate(parallel.pipe, NAME), generate(build(NAME), NAME))
        assert parallel.report is None


@pytest.mark.parametrize("thing", [object(), None, "tiny-sdxl"])
def test_what_is_no_pipeline_is_refused(thing: Any) -> None:
    with pytest.raises(UsageError, match="a loaded diffusers pipeline is needed, got"):
        parallelize(thing)


@pytest.mark.parametrize(
    ("config", "given"),
    [(diffusers.ParallelConfig(), "diffusers.ParallelConfig"), ({"strategy": "cfg"}, "dict")],
)
def test_what_is_no_config_is_refused(config: Any, given: str) -> None:
    for use in (lambda: parallelize(build(NAME), config), lambda: Engine("tiny-sdxl", devices=1, config=config)):
        with pytest.raises(UsageError, match=f"config must be a hybridiff.ParallelConfig, got {given}"):
            use()


def test_ranks_that_were_handed_in_stay_open() -> None:
    class Ranks(LocalComm):
        closed = False

        def close(self) -> None:
            self.closed = True

    ranks = Ranks(2)
    parallelize(build("sd15"), comm=ranks).detach()
    assert not ranks.closed
