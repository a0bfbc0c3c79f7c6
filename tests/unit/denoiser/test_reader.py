"""Evaluations are made of the calls of a step, by a layout that is known or found out at the first step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.denoiser.adapters.other import OtherAdapter
from hybridiff.denoiser.call import DenoiserCall
from hybridiff.denoiser.layout import BATCHED, SINGLE, GuidanceLayout
from hybridiff.denoiser.reader import CallReader, WatchedStep, batched_reader, count_steps, known_reader

NETWORK = torch.nn.Identity()
COEFFICIENTS = {2: (5.0, -4.0), 3: (7.0, -4.0, -2.0)}
"""By which the branches are multiplied, in the order of the calls, the conditional one first."""


class Pipeline:
    """As much of a pipeline as is read."""

    do_classifier_free_guidance = True

    def __init__(self, **attributes: Any) -> None:
        self.scheduler = SimpleNamespace(timesteps=torch.arange(4))
        vars(self).update(attributes)

    def __call__(self, prompt: str = "", guidance_scale: float = 5.0) -> None: ...


class ReadingPipeline(Pipeline):
    def __call__(self, prompt: str = "", sag_scale: float = 0.75) -> None: ...


def multiply(sample: torch.Tensor, text: torch.Tensor, settings: Any = None) -> tuple[torch.Tensor]:
    return (sample * text + (settings or {}).get("image", 0.0),)


def text_of(branch: int) -> torch.Tensor:
    return torch.linspace(branch + 1, 3 - branch, 3).repeat(2, 1)


def noise_of(step: int) -> torch.Tensor:
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(step))


def call_of(step: int, text: torch.Tensor, network: Any = NETWORK, **arguments: Any) -> DenoiserCall:
    sample = noise_of(step).repeat(len(text), 1)[: len(text)]
    return DenoiserCall(OtherAdapter(), network, multiply, {"sample": sample, "text": text} | arguments)


def calls_of(step: int, branches: int = 2, **arguments: Any) -> list[DenoiserCall]:
    """The calls of a step, one a branch, the conditional one first."""
    return [call_of(step, text_of(branch), **arguments) for branch in reversed(range(branches))]


def watch(calls: Sequence[DenoiserCall], pipe: Any = None, shown: torch.Tensor | None = None) -> WatchedStep:
    """A step of these calls; the scheduler is given what guidance makes of them unless something else is shown."""
    watched = WatchedStep(pipe or Pipeline())
    answers = [watched.answer(call)[0] for call in calls]
    if shown is None:
        factors = COEFFICIENTS.get(len(calls), (1.0,))
        shown = torch.stack([factor * answer for factor, answer in zip(factors, answers, strict=True)]).sum(0)
    watched.show(shown)
    return watched


def learned(branches: int = 2, **arguments: Any) -> CallReader:
    """The reader of a pipeline with a call for each branch, after its first step."""
    watched = watch(calls_of(0, branches, **arguments))
    return watched.reader(watched.layout())


def answers_of(reader: CallReader, calls: Sequence[DenoiserCall]) -> list[torch.Tensor | None]:
    """What the calls of a step are answered; None for those that were not foreseen."""
    evaluation = reader.evaluation(calls[0])
    answers = [reader.answer(evaluation, evaluation.run()), *map(reader.answer_later, calls[1:])]
    reader.end_step()
    return [None if answer is None else answer[0] for answer in answers]


def is_stock(answers: Sequence[torch.Tensor | None], calls: Sequence[DenoiserCall]) -> bool:
    """Whether every call got what the network says to it."""
    return all(
        answer is not None and torch.equal(answer, call.run()) for answer, call in zip(answers, calls, strict=True)
    )


@given(rows=st.integers(1, 6), asked=st.integers(1, 6), is_whole=st.booleans())
def test_a_batch_with_fewer_rows_is_one_branch(rows: int, asked: int, is_whole: bool) -> None:
    layout = GuidanceLayout(1, (1, 0), is_whole=is_whole)
    evaluation = batched_reader(layout, rows).evaluation(call_of(0, torch.ones(asked, 1)))
    assert evaluation.order == (layout.order if asked == rows else SINGLE.order)
    assert evaluation.is_whole is is_whole
    assert len(evaluation.calls) == 1


def test_a_pipeline_that_is_known_says_whether_it_guides() -> None:
    pipe = Pipeline()
    reader = known_reader(pipe)
    assert reader.evaluation(call_of(0, torch.ones(2, 1))).order == BATCHED.order
    pipe.do_classifier_free_guidance = False
    assert reader.evaluation(call_of(0, torch.ones(2, 1))).order == SINGLE.order


def test_further_calls_of_a_known_pipeline_are_not_foreseen() -> None:
    reader = known_reader(Pipeline())
    batch = call_of(0, torch.cat([text_of(0), text_of(1)]))
    for _ in range(2):
        answers = answers_of(reader, [batch, call_of(0, text_of(1))])
        assert torch.equal(answers[0], batch.run())  # type: ignore[arg-type]
        assert answers[1] is None


@pytest.mark.parametrize("branches", [2, 3])
def test_calls_of_their_own_are_foreseen_at_every_step(branches: int) -> None:
    reader = learned(branches)
    assert reader.layout.calls == reader.layout.branches == branches
    for step in range(1, 4):
        calls = calls_of(step, branches)
        evaluation = reader.evaluation(calls[0])
        assert evaluation.rows == 2 * branches
        assert evaluation.order == reader.layout.order
        assert is_stock(answers_of(reader, calls), calls)


def test_guidance_that_ends_leaves_one_branch() -> None:
    reader = learned()
    calls = calls_of(1)
    assert is_stock(answers_of(reader, calls), calls)
    assert reader.evaluation(calls_of(2)[0]).branches == 2  # nobody can know yet
    assert is_stock(answers_of(reader, calls_of(2)[:1]), calls_of(2)[:1])
    evaluation = reader.evaluation(calls_of(3)[0])
    assert (evaluation.branches, evaluation.rows) == (1, 2)
    assert is_stock(answers_of(reader, calls_of(3)[:1]), calls_of(3)[:1])


def test_guidance_that_comes_back_costs_one_further_evaluation() -> None:
    reader = learned()
    answers_of(reader, calls_of(1)[:1])
    calls = calls_of(2)
    answers = answers_of(reader, calls)
    assert is_stock(answers[:1], calls[:1])
    assert answers[1] is None
    assert is_stock(answers_of(reader, calls_of(3)), calls_of(3))


def test_beside_a_held_prediction_another_one_errs_alike() -> None:
    """Guidance multiplies the difference between the two, which is what it is at this step."""
    reader, (first, later) = learned(), calls_of(2)
    answers_of(reader, calls_of(1)[:1])  # guidance ends
    held = first.run() + 0.25
    reader.answer(reader.evaluation(first), held)
    assert torch.allclose(reader.beside_held(later, later.run()), later.run() + 0.25)
    longer = call_of(2, text_of(0).repeat(2, 1))
    assert torch.equal(reader.beside_held(longer, longer.run()), longer.run()), "of other rows nothing is known"


def test_another_text_is_not_foreseen_but_at_the_next_step() -> None:
    reader = learned()

    def with_another_text(step: int) -> list[DenoiserCall]:
        return [calls_of(step)[0], call_of(step, text_of(0) + 1)]

    answers = answers_of(reader, with_another_text(1))
    assert is_stock(answers[:1], with_another_text(1)[:1])
    assert answers[1] is None
    assert is_stock(answers_of(reader, with_another_text(2)), with_another_text(2))
    assert answers_of(reader, calls_of(3))[1] is None  # and back again


def test_another_text_of_the_first_call_changes_nothing() -> None:
    """As where a callback replaces the prompt."""
    calls = [call_of(1, text_of(1) + 1), calls_of(1)[1]]
    assert is_stock(answers_of(learned(), calls), calls)


def test_a_call_too_many_is_not_foreseen_and_not_remembered() -> None:
    reader = learned()
    calls = [*calls_of(1), call_of(1, text_of(0) + 1)]
    answers = answers_of(reader, calls)
    assert is_stock(answers[:2], calls[:2])
    assert answers[2] is None
    assert is_stock(answers_of(reader, calls_of(2)), calls_of(2))


def test_a_later_call_of_other_rows_is_never_foreseen() -> None:
    reader = learned()
    for step in (1, 2, 3):
        calls = [calls_of(step)[0], call_of(step, torch.cat([text_of(0), text_of(1)]))]
        answers = answers_of(reader, calls)
        assert is_stock(answers[:1], calls[:1])
        assert answers[1] is None
    assert is_stock(answers_of(reader, calls_of(4)), calls_of(4))


def step_that_changes_a_dict(reader: CallReader, step: int, images: Sequence[float], text: torch.Tensor) -> list[Any]:
    """A step whose calls are given one and the same dict, changed between them; what they got and what is right."""
    settings: dict[str, float] = {}
    settings["image"] = images[0]
    first = call_of(step, text_of(1), settings=settings)
    expected = [first.run()]
    evaluation = reader.evaluation(first)
    answers = [reader.answer(evaluation, evaluation.run())]
    settings["image"] = images[1]
    later = call_of(step, text, settings=settings)
    expected.append(later.run())
    answers.append(reader.answer_later(later))
    reader.end_step()
    return [
        answer if answer is None else torch.equal(answer[0], right)
        for answer, right in zip(answers, expected, strict=True)
    ]


def learned_with_a_dict(images: Sequence[float]) -> CallReader:
    settings: dict[str, float] = {}
    watched = WatchedStep(Pipeline())
    for branch, image in zip((1, 0), images, strict=True):
        settings["image"] = image
        watched.answer(call_of(0, text_of(branch), settings=settings))
    return watched.reader(watched.layout())


def test_a_dict_that_changes_between_the_calls() -> None:
    """As FLUX does with the images of an IP-Adapter."""
    reader = learned_with_a_dict((3.0, 4.0))
    assert step_that_changes_a_dict(reader, 1, (3.0, 4.0), text_of(0)) == [True, True]
    assert step_that_changes_a_dict(reader, 2, (3.0, 5.0), text_of(0)) == [True, None]
    assert step_that_changes_a_dict(reader, 3, (3.0, 5.0), text_of(0)) == [True, True]
    assert step_that_changes_a_dict(reader, 4, (3.0, 5.0), text_of(0) + 1) == [True, None]
    assert step_that_changes_a_dict(reader, 5, (3.0, 5.0), text_of(0) + 1) == [True, True]


def test_a_dict_that_begins_to_change_between_the_calls() -> None:
    reader = learned_with_a_dict((3.0, 3.0))
    assert step_that_changes_a_dict(reader, 1, (3.0, 3.0), text_of(0)) == [True, True]
    assert step_that_changes_a_dict(reader, 2, (3.0, 4.0), text_of(0)) == [True, None]
    assert step_that_changes_a_dict(reader, 3, (3.0, 4.0), text_of(0)) == [True, True]


@pytest.mark.parametrize("order", list(itertools.permutations(range(2))))
def test_a_watched_batch(order: tuple[int, ...]) -> None:
    call = call_of(0, torch.cat([text_of(branch) for branch in order]))
    parts = call.run().chunk(2)
    shown = -4.0 * parts[order.index(0)] + 5.0 * parts[order.index(1)]
    watched = watch([call], shown=shown)
    layout = watched.layout()
    assert (layout.calls, layout.order) == (1, order)
    assert layout.coefficients == pytest.approx((-4.0, 5.0), rel=1e-3)
    assert torch.equal(watched.evaluation(layout).run(), torch.cat([parts[order.index(branch)] for branch in (0, 1)]))
    assert (watched.rows, watched.extra_calls, watched.why_not_shared()) == (4, 0, "")
    assert watched.reader(layout).evaluation(call).order == order
    assert watched.reader(layout).evaluation(call_of(1, text_of(1))).order == SINGLE.order


def test_a_watched_step_without_guidance() -> None:
    watched = watch([call_of(0, text_of(1))])
    assert watched.layout() == SINGLE
    assert watched.reader(SINGLE).evaluation(call_of(1, text_of(1))).branches == 1


def test_what_is_recorded_is_not_what_the_pipeline_makes_of_its_answers() -> None:
    watched, calls = WatchedStep(Pipeline()), calls_of(0)
    expected = torch.cat([calls[1].run(), calls[0].run()])
    (first,), (later,) = map(watched.answer, calls)
    shown = 5.0 * first - 4.0 * later
    watched.show(shown)
    for tensor in (first, later, shown):
        tensor.zero_()
    layout = watched.layout()
    assert layout.coefficients == pytest.approx((-4.0, 5.0), rel=1e-3)
    assert torch.equal(watched.evaluation(layout).run(), expected)


def test_a_watched_step_begins_with_its_first_call() -> None:
    watched = WatchedStep(Pipeline())
    assert not watched.has_begun
    watched.answer(calls_of(0)[0])
    assert watched.has_begun


def test_what_a_scheduler_is_given_first_in_a_step_counts() -> None:
    watched, calls = WatchedStep(Pipeline()), calls_of(0)
    watched.show(torch.randn(2, 3))  # before any call: of something else
    (first,), (later,) = map(watched.answer, calls)
    watched.show(3.0 * first - 2.0 * later)
    watched.show(torch.randn(2, 3))
    assert watched.layout().coefficients == pytest.approx((-2.0, 3.0), rel=1e-3)


def test_unlike_calls_are_beside_the_guided_evaluation() -> None:
    """A batch of both branches, then one row of something else, as in skip-layer guidance."""
    batch = call_of(0, torch.cat([text_of(0), text_of(1)]))
    parts = batch.run().chunk(2)
    watched = watch([batch, call_of(0, text_of(1) + 1)], shown=5.0 * parts[1] - 4.0 * parts[0])
    assert (watched.extra_calls, watched.layout().order, watched.layout().calls) == (1, (0, 1), 1)


def test_calls_with_as_many_rows_as_both_branches_are_no_branches() -> None:
    batches = [call_of(0, torch.cat([text_of(0), text_of(1)])) for _ in range(2)]
    parts = batches[0].run().chunk(2)
    watched = watch(batches, shown=5.0 * parts[1] - 4.0 * parts[0])
    assert (watched.extra_calls, watched.layout().order, watched.layout().calls) == (1, (0, 1), 1)


class Cache:
    """Keys and values of an earlier call."""


def guider(name: str) -> Any:
    return type(name, (), {})()


@pytest.mark.parametrize(
    ("pipe", "networks", "arguments", "reason"),
    [
        (Pipeline(), (NETWORK, NETWORK), {}, ""),
        (Pipeline(), (NETWORK, torch.nn.Identity()), {}, "it calls another network for each guidance branch"),
        (Pipeline(), (NETWORK, NETWORK), {"settings": {}, "cache": [Cache()]}, r"its calls share a state (cache)"),
        (Pipeline(guider=None), (NETWORK, NETWORK), {}, ""),
        (Pipeline(guider=guider("ClassifierFreeGuidance")), (NETWORK, NETWORK), {}, ""),
        (
            Pipeline(guider=guider("ClassifierFreeGuidance"), guider_2=guider("SkipLayerGuidance")),
            (NETWORK, NETWORK),
            {},
            "SkipLayerGuidance changes the network between its calls",
        ),
        (
            Pipeline(ocr_guider=guider("AutoGuidance")),
            (NETWORK, NETWORK),
            {},
            "AutoGuidance changes the network between its calls",
        ),
        (ReadingPipeline(), (NETWORK, NETWORK), {}, "it reads the attention of its network (sag_scale)"),
        (ReadingPipeline(), (NETWORK,), {}, "it reads the attention of its network (sag_scale)"),
        (Pipeline(guider=guider("SkipLayerGuidance")), (NETWORK,), {"cache": Cache()}, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_why_calls_are_left_to_every_rank(
    pipe: Any, networks: tuple[Any, ...], arguments: dict[str, Any], reason: str
) -> None:
    def forward(sample: torch.Tensor, text: torch.Tensor, **others: Any) -> tuple[torch.Tensor]:
        return multiply(sample, text)

    calls = [
        DenoiserCall(OtherAdapter(), network, forward, {"sample": noise_of(0), "text": text_of(branch)} | arguments)
        for branch, network in enumerate(networks)
    ]
    assert watch(calls, pipe).why_not_shared() == reason


def test_steps_are_counted_by_the_pipeline_or_its_scheduler() -> None:
    assert count_steps(Pipeline()) == 4
    assert count_steps(Pipeline(num_timesteps=3)) == 3
