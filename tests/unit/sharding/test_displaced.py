"""Messages of the evaluation before: what ranks hear of each other, and what networks make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.sharding import heads
from hybridiff.sharding.displaced import DisplacedGroup
from hybridiff.sharding.group import ThreadGroup, play
from hybridiff.sharding.network import ShardedNetwork, shard_network
from hybridiff.sharding.rows import _of_all, _statistics
from support.networks import NETWORKS, evaluation_of
from support.oracles import relative_difference
from support.pipelines import build, generate
from support.shards import Arguments, fresh, predicted, ranks, shared, whole
from zoo import ZOO, run

SHARED = {"devices": 2, "shards": 2, "simulate": True}


class Ranks:
    """Ranks in threads whose messages are displaced."""

    def __init__(self, parts: int, warm_up: int) -> None:
        self.threads = ranks(parts)
        self.displaced = [DisplacedGroup(thread, warm_up) for thread in self.threads]

    def step(self, *calls: Callable[[DisplacedGroup], Any], forms: Sequence[object] = ()) -> list[Any]:
        """What the ranks make of the calls of a step: for each rank a list, or what its one call made."""

        def work(thread: ThreadGroup) -> Any:
            rank = self.displaced[thread.index]
            rank.begin_step()
            made = []
            for number, call in enumerate(calls):
                rank.begin(forms[number] if forms else "form")
                made.append(call(rank))
            return made if len(made) > 1 else made[0]

        return play(self.threads, work)

    def evaluate(self, sharded: ShardedNetwork, arguments: Arguments) -> torch.Tensor:
        """What the ranks predict together in a step; all of them the same."""

        def work(thread: ThreadGroup) -> torch.Tensor:
            rank = self.displaced[thread.index]
            rank.begin_step()
            return predicted(sharded.shared_by(rank, sharded.network.forward)(**fresh(arguments)))

        first, *others = play(self.threads, work)
        assert all(torch.equal(first, other) for other in others)
        return first


def say(time: int, place: int = 0) -> Callable[[DisplacedGroup], list[int]]:
    """Each rank says its number, and when and where it says that: what is heard."""
    return lambda rank: rank.all_gather(torch.tensor(100 * rank.index + 10 * place + time)).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("warm_up", [0, 2])
def test_others_are_heard_as_they_were_one_evaluation_earlier(warm_up: int) -> None:
    group = Ranks(3, warm_up)
    for time in range(warm_up + 1):
        assert group.step(say(time)) == [[time, 100 + time, 200 + time]] * 3
    for time in range(warm_up + 1, warm_up + 4):
        old = time - 1
        assert group.step(say(time)) == [
            [time, 100 + old, 200 + old],
            [old, 100 + time, 200 + old],
            [old, 100 + old, 200 + time],
        ]


def test_places_and_calls_of_a_step_do_not_mix() -> None:
    group = Ranks(2, 0)

    def two_places(time: int, first: int) -> Callable[[DisplacedGroup], Any]:
        return lambda rank: [say(time, first)(rank), say(time, first + 1)(rank)]

    group.step(two_places(0, 0), two_places(0, 5))
    heard = group.step(two_places(1, 0), two_places(1, 5))
    assert heard[0] == [[[1, 100], [11, 110]], [[51, 150], [61, 160]]]


def test_another_form_begins_anew_and_other_calls_go_on() -> None:
    group = Ranks(2, 1)
    for time in range(2):
        group.step(say(time, 0), say(time, 1), forms=("large", "large"))
    heard = group.step(say(2, 0), say(2, 1), forms=("large", "small"))
    assert heard[0] == [[2, 101], [12, 112]]
    group.step(say(3, 0), say(3, 1), forms=("large", "small"))
    heard = group.step(say(4, 0), say(4, 1), forms=("large", "small"))
    assert heard[1] == [[3, 104], [13, 114]]


def test_a_call_that_comes_later_or_ends_earlier_shifts_no_other() -> None:
    """A ControlNet is called before its denoiser, from the second step on and until guidance by it ends."""
    group = Ranks(2, 0)
    group.step(say(0, 1), forms=("denoiser",))
    heard = group.step(say(1, 0), say(1, 1), forms=("control", "denoiser"))
    assert heard[0] == [[1, 101], [11, 110]]
    heard = group.step(say(2, 0), say(2, 1), forms=("control", "denoiser"))
    assert heard[0] == [[2, 101], [12, 111]]
    assert group.step(say(3, 1), forms=("denoiser",))[0] == [13, 112]


def test_a_message_of_another_dtype_is_heard_as_it_is_now() -> None:
    group = Ranks(2, 0)
    group.step(say(0))
    heard = group.step(lambda rank: rank.all_gather(torch.tensor(rank.index + 0.5)).tolist())
    assert heard == [[0.5, 1.5]] * 2


def test_parts_of_uneven_lengths_are_displaced_and_outputs_are_not() -> None:
    group = Ranks(2, 0)

    def both(time: int) -> Callable[[DisplacedGroup], Any]:
        def call(rank: DisplacedGroup) -> Any:
            own = torch.full((2 - rank.index,), 10 * rank.index + time)
            return rank.concatenate("keys", own, -1).tolist(), rank.join("output", own, -1).tolist()

        return call

    group.step(both(0))
    assert group.step(both(1)) == [([1, 1, 10], [1, 1, 11]), ([0, 0, 11], [1, 1, 11])]


def test_heads_are_exchanged_until_keys_are_kept() -> None:
    group = Ranks(2, 2)
    assert [group.step(lambda rank: rank.may_exchange) for _ in range(4)] == [[True] * 2] * 2 + [[False] * 2] * 2


def test_bytes_are_those_of_synchronous_messages() -> None:
    group = Ranks(4, 1)
    for _ in range(3):
        group.step(lambda rank: rank.all_gather(torch.zeros(5, 2)))
    assert [thread.received for thread in group.threads] == [3 * 3 * 10 * 4] * 4


def features(changed: float = 0.0, scale: float = 1.0) -> list[torch.Tensor]:
    """Features of two parts, of uneven sizes."""
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randn(2, 4, pixels, generator=generator, dtype=torch.float64) for pixels in (6, 5)]
    return [changed + scale * part for part in parts]


SHARES = torch.tensor([6.0, 5.0], dtype=torch.float64).view(-1, 1, 1) / 11


def statistics(group: Ranks, parts: list[torch.Tensor]) -> list[Any]:
    own = [_statistics(part, 2) for part in parts]

    def of_all(rank: DisplacedGroup) -> Any:
        mine = own[rank.index]
        return _of_all(rank.changed_alike(rank.all_gather(mine), mine), SHARES)

    return group.step(of_all)


def exact(parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    joined = torch.cat(parts, -1).reshape(2, 2, -1)
    return joined.mean(-1), joined.var(-1, correction=0)


def test_statistics_are_exact_where_all_parts_change_alike() -> None:
    group = Ranks(2, 0)
    for parts in (features(), features(0.7), features(0.2)):
        for own in statistics(group, parts):
            for value, expected in zip(own, exact(parts), strict=True):
                assert relative_difference(value, expected) <= 1e-12


def test_a_variance_that_would_be_negative_is_zero() -> None:
    group = Ranks(2, 0)
    wide, narrow = features(scale=2.0), features(scale=0.1)
    statistics(group, [wide[0], narrow[1]])
    mean, variance = statistics(group, [narrow[0], narrow[1]])[0]
    own = narrow[0].reshape(2, 2, -1)
    others = narrow[1].reshape(2, 2, -1).mean(-1) + own.mean(-1) - wide[0].reshape(2, 2, -1).mean(-1)
    expected = (6 * own.mean(-1) + 5 * others) / 11
    spread = (6 * (own.mean(-1) - expected).square() + 5 * (others - expected).square()) / 11
    assert relative_difference(mean, expected) <= 1e-12
    assert relative_difference(variance, 6 / 11 * own.var(-1, correction=0) + spread) <= 1e-12


def network_and_call(name: str) -> tuple[ShardedNetwork, Arguments]:
    sharded = shard_network(NETWORKS[name]())
    assert sharded is not None
    return sharded, evaluation_of(sharded.network, 1, 16, 12).calls[0].arguments


@pytest.mark.parametrize("name", ["sdxl", "sd3.5"])
def test_inputs_that_stay_make_no_difference(name: str) -> None:
    sharded, arguments = network_and_call(name)
    expected, group = shared(sharded, arguments, 2), Ranks(2, 0)
    for _ in range(3):
        assert torch.equal(group.evaluate(sharded, arguments), expected)


@pytest.mark.parametrize("name", ["sdxl", "sd3.5"])
def test_inputs_that_change_are_nearer_than_the_evaluation_before(name: str) -> None:
    sharded, arguments = network_and_call(name)
    first = next(iter(arguments))
    later = arguments | {first: arguments[first] + 0.1 * arguments[first].flip(-1)}
    group = Ranks(2, 0)
    before = group.evaluate(sharded, arguments)
    expected = whole(sharded.network, later)
    difference = relative_difference(group.evaluate(sharded, later), expected)
    assert 1e-6 < difference < 0.7 * relative_difference(before, expected)


@pytest.mark.parametrize("warm_up", [20, 30])
def test_a_warm_up_of_all_steps_is_the_synchronous_run(warm_up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LATENCY", -(2**30))  # as synchronous runs exchange heads where it pays
    expected, _ = generated("sd3", {}, num_inference_steps=20)
    config = {"displaced": True, "displaced_warm_up": warm_up}
    made, report = generated("sd3", config, num_inference_steps=20)
    assert torch.equal(made, expected)
    assert report.notes == [f"no message is displaced: displaced_warm_up is {warm_up}"]


def generated(name: str, config: dict[str, Any], **changes: Any) -> tuple[torch.Tensor, Any]:
    with parallelize(build(name), ParallelConfig(**SHARED | config)) as parallel:  # type: ignore[arg-type]
        return generate(parallel, name, **changes), parallel.report


@pytest.mark.parametrize("name", ["sdxl two levels", "sd3"])
def test_images_are_near_and_reports_say_so(name: str) -> None:
    exact, synchronous = generated(name, {}, num_inference_steps=20)
    made, report = generated(name, {"displaced": True}, num_inference_steps=20)
    assert 1e-6 < relative_difference(made, exact) < 0.1
    assert report.notes == [
        "from step 5 on, messages within the network are those of the step before: images are approximate"
    ]
    assert report.bytes_by_purpose == synchronous.bytes_by_purpose


def test_each_run_begins_anew() -> None:
    with parallelize(build("sd3"), ParallelConfig(displaced=True, **SHARED)) as parallel:  # type: ignore[arg-type]
        first, second = (generate(parallel, "sd3", num_inference_steps=8) for _ in range(2))
    assert torch.equal(first, second)


def test_ranks_that_share_no_image_say_so() -> None:
    _, report = generated("sd3", {"displaced": True, "shards": None})
    assert report.notes == ["no message is displaced: ranks do not share an image; --shards 2 has two do so"]


@pytest.mark.parametrize("name", ["FluxPipeline", "QwenImagePipeline"])
def test_pipelines_with_a_call_for_each_branch(name: str) -> None:
    specimen = ZOO[name]

    def latents(**config: Any) -> torch.Tensor:
        with parallelize(specimen.build(), ParallelConfig(**SHARED | config)) as parallel:  # type: ignore[arg-type]
            made: torch.Tensor = run(specimen, parallel, steps=8)
            return made

    expected = latents()
    assert 1e-6 < relative_difference(latents(displaced=True, displaced_warm_up=2), expected) < 0.2
    assert torch.equal(latents(displaced=True, displaced_warm_up=8), expected)
