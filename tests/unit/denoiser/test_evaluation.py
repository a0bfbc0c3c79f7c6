"""The rows of a step's branches are the same, however a pipeline asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.denoiser.adapters.other import OtherAdapter
from hybridiff.denoiser.call import DenoiserCall
from hybridiff.denoiser.evaluation import Evaluation, RecordedEvaluation, can_be_evaluated_apart

Network = Callable[..., tuple[torch.Tensor]]

ORDERS = st.integers(1, 4).flatmap(lambda branches: st.permutations(range(branches)))


def multiply(sample: torch.Tensor, text: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
    """A network to which its rows are nothing to each other, and another text is another answer."""
    return (sample * text,)


def centre(sample: torch.Tensor, text: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
    """A network whose rows depend on each other."""
    return (sample * text - (sample * text).mean(0),)


def noise_of(size: int) -> torch.Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(size))


def text_of(branch: int, size: int) -> torch.Tensor:
    return torch.full((size, 1), 1.0 + branch)


def evaluation_of(order: Sequence[int], size: int, batched: bool, network: Network = multiply) -> Evaluation:
    """A step of so many samples, its branches stacked in an order, or in calls one after the other."""
    texts, noise = [text_of(branch, size) for branch in order], noise_of(size)
    given = [(noise.repeat(len(order), 1), torch.cat(texts))] if batched else [(noise, text) for text in texts]
    calls = tuple(
        DenoiserCall(OtherAdapter(), torch.nn.Identity(), network, {"sample": sample, "text": text})
        for sample, text in given
    )
    return Evaluation(calls, tuple(order))


def in_order_of_branches(branches: int, size: int) -> torch.Tensor:
    return torch.cat([noise_of(size) * text_of(branch, size) for branch in range(branches)])


def draw_rows(data: st.DataObject, count: int) -> slice:
    start = data.draw(st.integers(0, count - 1))
    return slice(start, data.draw(st.integers(start + 1, count)))


@given(order=ORDERS, size=st.integers(1, 4), batched=st.booleans(), data=st.data())
def test_any_rows_are_those_of_the_whole(order: list[int], size: int, batched: bool, data: st.DataObject) -> None:
    evaluation, expected = evaluation_of(order, size, batched), in_order_of_branches(len(order), size)
    assert (evaluation.branches, evaluation.rows) == (len(order), len(expected))
    assert torch.equal(evaluation.run(), expected)
    wanted = draw_rows(data, len(expected))
    assert torch.equal(evaluation.run(wanted), expected[wanted])


@given(order=ORDERS, size=st.integers(1, 4), batched=st.booleans(), data=st.data())
def test_no_row_is_evaluated_that_was_not_wanted(
    order: list[int], size: int, batched: bool, data: st.DataObject
) -> None:
    evaluated: list[int] = []

    def counting(sample: torch.Tensor, **others: Any) -> tuple[torch.Tensor]:
        evaluated.append(len(sample))
        return multiply(sample, **others)

    evaluation = evaluation_of(order, size, batched, counting)
    wanted = draw_rows(data, evaluation.rows)
    evaluation.run(wanted)
    assert sum(evaluated) == wanted.stop - wanted.start
    if batched and order == sorted(order):
        assert len(evaluated) == 1  # rows side by side are one call


@given(order=ORDERS, size=st.integers(1, 4), batched=st.booleans())
def test_every_call_is_answered_its_own_rows_in_its_own_order(order: list[int], size: int, batched: bool) -> None:
    evaluation = evaluation_of(order, size, batched)
    prediction = evaluation.run()
    for place, call in enumerate(evaluation.calls):
        assert torch.equal(evaluation.answer(prediction, place).sample, call.run())


def test_every_call_is_answered_in_the_form_it_asks_for() -> None:
    evaluation = evaluation_of((1, 0), 2, batched=False)
    evaluation.calls[1].arguments["return_dict"] = False
    prediction = evaluation.run()
    assert isinstance(evaluation.answer(prediction, 0), Transformer2DModelOutput)
    (answered,) = evaluation.answer(prediction, 1)
    assert torch.equal(answered, prediction[:2])


def never(**arguments: Any) -> tuple[torch.Tensor]:
    raise AssertionError("it was answered already")


@given(order=ORDERS, batched=st.booleans(), data=st.data())
def test_a_recorded_evaluation_asks_no_network(order: list[int], batched: bool, data: st.DataObject) -> None:
    asked, expected = evaluation_of(order, 2, batched, never), in_order_of_branches(len(order), 2)
    recorded = RecordedEvaluation(asked.calls, asked.order, prediction=expected)
    assert recorded.run() is expected
    wanted = draw_rows(data, len(expected))
    assert torch.equal(recorded.run(wanted), expected[wanted])
    assert torch.equal(recorded.in_order_of_branches(asked_of(recorded)), expected)


def asked_of(recorded: RecordedEvaluation) -> torch.Tensor:
    """What the calls of a recorded evaluation are answered, one after the other."""
    assert recorded.prediction is not None
    return torch.cat([recorded.answer(recorded.prediction, place).sample for place in range(len(recorded.calls))])


def record(evaluation: Evaluation) -> RecordedEvaluation:
    return RecordedEvaluation(evaluation.calls, evaluation.order, prediction=evaluation.run())


@given(order=ORDERS, size=st.integers(1, 3), batched=st.booleans(), data=st.data())
def test_rows_that_are_nothing_to_each_other_can_be_evaluated_apart(
    order: list[int], size: int, batched: bool, data: st.DataObject
) -> None:
    evaluation = evaluation_of(order, size, batched)
    assert can_be_evaluated_apart(record(evaluation), [draw_rows(data, evaluation.rows), slice(0, 0)])


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "one call a branch"])
def test_rows_that_depend_on_each_other_cannot(batched: bool) -> None:
    recorded = record(evaluation_of((1, 0), 4, batched, centre))
    assert not can_be_evaluated_apart(recorded, [slice(0, 2)])
    assert not can_be_evaluated_apart(recorded, [slice(0, 8), slice(5, 6)])
    assert can_be_evaluated_apart(recorded, [slice(0, 4)]) is not batched  # a whole call is what it is


def test_rows_of_two_calls_are_no_whole_call() -> None:
    recorded = record(evaluation_of((2, 1, 0), 2, False, centre))
    assert can_be_evaluated_apart(recorded, [slice(2, 4)])
    assert not can_be_evaluated_apart(recorded, [slice(1, 3)])


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, IndexError])
def test_nor_those_of_a_network_that_insists_on_all_of_them(error: type[Exception]) -> None:
    def insisting(sample: torch.Tensor, **others: Any) -> tuple[torch.Tensor]:
        if len(sample) != 4:
            raise error
        return multiply(sample, **others)

    recorded = record(evaluation_of((0, 1), 2, True, insisting))
    assert not can_be_evaluated_apart(recorded, [slice(0, 2), slice(2, 4)])


@pytest.mark.parametrize(
    ("dtype", "difference", "expected"),
    [
        (torch.float32, 1e-4, True),
        (torch.float32, 1e-2, False),
        (torch.bfloat16, 1e-2, True),
        (torch.bfloat16, 0.2, False),
        (torch.float32, float("nan"), False),
    ],
)
def test_other_batches_may_round_otherwise(dtype: torch.dtype, difference: float, expected: bool) -> None:
    def rounding(sample: torch.Tensor, **others: Any) -> tuple[torch.Tensor]:
        return (multiply(sample, **others)[0].to(dtype) * (1 if len(sample) == 4 else 1 + difference),)

    assert can_be_evaluated_apart(record(evaluation_of((0, 1), 2, True, rounding)), [slice(0, 2)]) is expected
