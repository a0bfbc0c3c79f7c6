"""Steps of a pipeline that has a call for each branch, the later ones foreseen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff.denoiser.adapters.other import OtherAdapter
from hybridiff.denoiser.call import DenoiserCall
from hybridiff.denoiser.layout import GuidanceLayout
from hybridiff.denoiser.reader import CallReader
from hybridiff.denoiser.replay import CallDifference

NETWORK = torch.nn.Identity()
TEXT, NEGATIVE_TEXT = torch.full((1, 3), 2.0), torch.full((1, 3), -1.0)


def forward(hidden_states: torch.Tensor, texts: dict[str, Any]) -> tuple[torch.Tensor]:
    return (hidden_states * texts["text"],)


def call(sample: torch.Tensor, text: torch.Tensor) -> DenoiserCall:
    return DenoiserCall(OtherAdapter(), NETWORK, forward, {"hidden_states": sample, "texts": {"text": text}})


@pytest.fixture
def reader() -> CallReader:
    sample = torch.ones(1, 3)
    difference = CallDifference.between(call(sample, TEXT), call(sample, NEGATIVE_TEXT))
    return CallReader(GuidanceLayout(2, (1, 0)), lambda _: True, (difference,))


def begin(reader: CallReader, sample: torch.Tensor) -> torch.Tensor:
    evaluation = reader.evaluation(call(sample, TEXT))
    answered: torch.Tensor = reader.answer(evaluation, evaluation.run())[0]
    return answered


def test_the_later_call_is_answered_with_what_was_foreseen(reader: CallReader) -> None:
    sample = torch.tensor([[1.0, 2.0, 3.0]])
    assert torch.equal(begin(reader, sample), 2 * sample)
    later = reader.answer_later(call(sample, NEGATIVE_TEXT))
    assert later is not None
    assert torch.equal(later[0], -sample)
    assert reader.answer_later(call(sample, NEGATIVE_TEXT)) is None  # one call too many


def test_an_equal_sample_is_the_same_and_another_one_is_not(reader: CallReader) -> None:
    sample = torch.tensor([[1.0, 2.0, 3.0]])
    begin(reader, sample)
    assert reader.answer_later(call(sample.clone(), NEGATIVE_TEXT)) is not None
    begin(reader, sample)
    assert reader.answer_later(call(sample + 1, NEGATIVE_TEXT)) is None


@pytest.mark.parametrize("changed", ["sample", "text"])
def test_what_is_changed_in_place_between_the_calls_is_found_out(reader: CallReader, changed: str) -> None:
    sample, text = torch.tensor([[1.0, 2.0, 3.0]]), NEGATIVE_TEXT.clone()
    begin(reader, sample)
    assert reader.answer_later(call(sample, text)) is not None  # equal, though not the same object
    begin(reader, sample)
    (sample if changed == "sample" else NEGATIVE_TEXT).add_(1)
    try:
        assert reader.answer_later(call(sample, NEGATIVE_TEXT)) is None
    finally:
        NEGATIVE_TEXT.fill_(-1.0)


def test_in_inference_mode_versions_are_not_counted(reader: CallReader) -> None:
    with torch.inference_mode():
        sample = torch.ones(1, 3)
        begin(reader, sample)
        assert reader.answer_later(call(sample, NEGATIVE_TEXT)) is not None


def test_a_step_with_fewer_calls_ends_guidance(reader: CallReader) -> None:
    sample = torch.ones(1, 3)
    begin(reader, sample)
    reader.end_step()
    evaluation = reader.evaluation(call(sample, TEXT))
    assert (evaluation.branches, len(evaluation.calls)) == (1, 1)
