"""A watched scheduler is the stock one to everybody, and so are its copies; nothing is left behind."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser.watch import SchedulerWatch
from support.pipelines import SCHEDULERS
from zoo import ZOO, run


class Watched:
    """What a watch of a scheduler has seen."""

    def __init__(self, scheduler: Any) -> None:
        self.events: list[Any] = []
        self.watch = SchedulerWatch(scheduler, self.events.append, lambda: self.events.append("end"))


def a_scheduler(name: str = "unipc") -> Any:
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(4)
    return scheduler


def step(scheduler: Any, index: int = 0) -> torch.Tensor:
    torch.manual_seed(0)  # some add noise
    stepped = scheduler.step(torch.full((1, 4), 0.5), scheduler.timesteps[index], torch.ones(1, 4))
    assert isinstance(stepped.prev_sample, torch.Tensor)
    return stepped.prev_sample


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_watched_scheduler_is_what_it_was(name: str) -> None:
    stock, scheduler = a_scheduler(name), a_scheduler(name)
    signature = inspect.signature(scheduler.step)
    watched = Watched(scheduler)
    with watched.watch:
        assert type(scheduler) is type(stock)
        assert inspect.signature(scheduler.step) == signature
        assert [torch.equal(step(scheduler, i), step(stock, i)) for i in range(2)] == [True, True]
    seen = [event if isinstance(event, str) else event.tolist() for event in watched.events]
    assert seen == [[[0.5] * 4], "end"] * 2
    assert vars(scheduler).keys() == vars(stock).keys()
    assert torch.equal(step(scheduler, 2), step(stock, 2))
    assert len(watched.events) == 4


def test_what_a_scheduler_is_given_by_name_is_seen_too() -> None:
    scheduler = a_scheduler()
    watched, given = Watched(scheduler), torch.zeros(1, 4)
    with watched.watch:
        scheduler.step(model_output=given, timestep=scheduler.timesteps[0], sample=given)
    assert watched.events[0] is given


def test_copies_of_a_watched_scheduler_step_on_their_own_and_unseen() -> None:
    scheduler, stock = a_scheduler(), a_scheduler()
    watched = Watched(scheduler)
    with watched.watch:
        step(scheduler)
        copied = copy.deepcopy(scheduler)
        again = copy.deepcopy(copied)
        seen = len(watched.events)
        expected = [step(stock, i) for i in range(3)]
        for other in (copied, again):
            assert [torch.equal(step(other, i), expected[i]) for i in (1, 2)] == [True, True]
            assert (other.step_index, scheduler.step_index) == (3, 1)
        together = copy.deepcopy({"step": scheduler.step, "scheduler": scheduler})
    step(together["scheduler"], 1)
    assert together["step"].__self__ is together["scheduler"]
    assert len(watched.events) == seen
    assert torch.equal(step(scheduler, 1), expected[1])


def test_an_error_in_a_step_leaves_no_watch_behind() -> None:
    scheduler = a_scheduler()
    before, watched = set(vars(scheduler)), Watched(scheduler)
    with pytest.raises(TypeError), watched.watch:
        scheduler.step(torch.zeros(1, 4))
    assert set(vars(scheduler)) == before
    assert len(watched.events) == 1  # the step did not end


def test_a_step_that_somebody_else_put_there_stays() -> None:
    scheduler = a_scheduler()
    own, calls = scheduler.step, []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return own(*args, **kwargs)

    scheduler.step = theirs
    with Watched(scheduler).watch:
        step(scheduler)
        copied = copy.deepcopy(scheduler)
    assert scheduler.step is theirs
    assert copied.step is theirs  # as a copy of the scheduler by itself would have it
    assert len(calls) == 1


def test_a_run_that_fails_leaves_the_scheduler_unwatched() -> None:
    specimen = ZOO["FluxPipeline"]
    pipe = specimen.build()

    def fail(*_: Any) -> None:
        raise KeyError("callback")

    with parallelize(pipe, ParallelConfig(simulate=True)) as parallel, pytest.raises(KeyError, match="callback"):
        run(specimen, parallel, callback_on_step_end=fail)
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(run(specimen, pipe), run(specimen, specimen.build()))
