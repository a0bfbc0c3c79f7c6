from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybridiff.distributed.comm import LocalComm
from hybridiff.distributed.consistency import describe, describe_call, random_state_digest, require_same
from support.pipelines import build, call_arguments


class OtherRank(LocalComm):
    """A second rank that answers every exchange with the same thing."""

    def __init__(self, answer: Any) -> None:
        super().__init__(2)
        self.answer = answer

    def exchange(self, thing: Any) -> list[Any]:
        return [thing, self.answer]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(4), torch.zeros(2, 2)),
        (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        ([torch.Generator().manual_seed(1)], [torch.Generator().manual_seed(2)]),
        (Image.new("RGB", (2, 4)), Image.new("RGB", (4, 2))),
        (Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), "red")),
        (np.zeros(2), np.ones(2)),
        ({"a": [torch.zeros(1)]}, {"a": [torch.ones(1)]}),
        (("a", "b"), ("b", "a")),
        ("5", 5),
        (5, 5.0),
        (None, "nothing"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_different_things_have_different_descriptions(one: Any, other: Any) -> None:
    assert describe(one) != describe(other)
    assert describe(one) == describe(one)


def test_a_generator_that_was_used_differs() -> None:
    fresh, used = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    assert describe(fresh) == describe(used)
    torch.rand(1, generator=used)
    assert describe(fresh) != describe(used)


def test_equal_things_in_different_memory_are_described_alike() -> None:
    one, other = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3).t().contiguous().t()
    assert one.stride() != other.stride()
    assert describe(one) == describe(other)
    assert describe(torch.tensor(1.0)) == describe(torch.tensor(1.0))


def test_the_form_of_the_output_and_callbacks_are_not_compared() -> None:
    pipe = build("sd3")
    plain = describe_call(pipe, pipe.transformer, call_arguments("sd3"))
    other = call_arguments("sd3", output_type="pil", return_dict=False, callback_on_step_end=print)
    assert describe_call(pipe, pipe.transformer, other) == plain


def test_where_a_network_was_read_from_is_not_compared() -> None:
    pipe = build("sd3")
    plain = describe_call(pipe, pipe.transformer, {})
    pipe.transformer.register_to_config(_name_or_path="/somewhere/else")
    assert describe_call(pipe, pipe.transformer, {}) == plain
    pipe.scheduler.register_to_config(shift=1.5)
    assert describe_call(pipe, pipe.transformer, {}) != plain


def test_ranks_that_agree_pass() -> None:
    assert require_same(OtherRank({"prompt": "'a'"}), {"prompt": "'a'"}) is None


def test_a_disagreement_names_the_argument_and_both_values() -> None:
    sentence = "ranks disagree on prompt: rank 0 has 'a', rank 1 has 'b'; make the same call on every rank"
    with pytest.raises(ValueError, match=sentence):
        require_same(OtherRank({"prompt": "'b'"}), {"prompt": "'a'"})


def test_a_missing_argument_is_a_disagreement() -> None:
    with pytest.raises(ValueError, match="disagree on steps: rank 0 has nothing, rank 1 has 5"):
        require_same(OtherRank({"steps": "5"}), {})


def test_of_long_texts_the_part_that_differs_is_shown() -> None:
    long = "a very long prompt, " * 50
    with pytest.raises(ValueError, match="with a ring") as caught:
        require_same(OtherRank({"prompt": long + "with a cube" + long}), {"prompt": long + "with a ring" + long})
    assert "with a cube" in str(caught.value)
    assert len(str(caught.value)) < 400


def test_an_error_of_one_rank_is_raised_by_all_with_its_name() -> None:
    with pytest.raises(ValueError, match="rank 1 cannot start: no such model"):
        require_same(OtherRank("no such model"), {})
    error = KeyError("prompt")
    with pytest.raises(ValueError, match="rank 0 cannot start: 'prompt'") as caught:
        require_same(OtherRank({}), error)
    assert caught.value.__cause__ is error


def test_an_error_that_all_ranks_share_is_told_once() -> None:
    with pytest.raises(ValueError, match=r"^bad value$"):
        require_same(LocalComm(2), ValueError("bad value"))


def test_the_digest_of_the_global_random_state_follows_it() -> None:
    torch.manual_seed(1)
    before = random_state_digest()
    assert random_state_digest() == before
    torch.rand(1)
    assert random_state_digest() != before
