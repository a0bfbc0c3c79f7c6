from __future__ import annotations

import functools
import pickle
import threading
import traceback
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, IPAdapterAttnProcessor2_0
from PIL import Image

from hybridiff.distributed.comm import LocalComm
from hybridiff.distributed.consistency import (
    describe,
    describe_call,
    device_identity,
    random_state_digest,
    require_same,
)
from hybridiff.errors import RankError, UsageError
from support.pipelines import build, call_arguments


class Answered(LocalComm):
    """All ranks have said what they say; None as the answers notes down what this one says."""

    def __init__(self, answers: list[Any] | None) -> None:
        super().__init__(len(answers or [None]))
        self.answers = answers
        self.said: Any = None

    def all_gather_object(self, thing: Any) -> list[Any]:
        self.said = thing
        return [thing] if self.answers is None else self.answers


def said(description: Any) -> Any:
    """What a rank with this description, or error, tells the others."""
    comm = Answered(None)
    try:
        require_same(comm, description)
    except Exception:
        assert comm.said is not None
    return pickle.loads(pickle.dumps(comm.said))


def outcomes(*descriptions: Any) -> list[Any]:
    """What each rank raises, None where nothing, if these are the ranks' descriptions or errors."""
    answers = [said(description) for description in descriptions]
    results: list[Any] = []
    for description in descriptions:
        try:
            require_same(Answered(answers), description)
            results.append(None)
        except Exception as error:
            results.append(error)
    return results


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
    plain = describe_call(pipe, (pipe.transformer,), call_arguments("sd3"))
    other = call_arguments("sd3", output_type="pil", return_dict=False, callback_on_step_end=print)
    other |= {"callback": print, "callback_steps": 2}
    assert describe_call(pipe, (pipe.transformer,), other) == plain


def test_what_was_set_in_a_network_is_compared() -> None:
    pipe = build("sdxl")
    attention = next(module for module in pipe.unet.modules() if isinstance(module, Attention))

    def described() -> tuple[str, ...]:
        return tuple(describe_call(pipe, (pipe.unet,), {}).values())

    seen = [described()]
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    seen.append(described())
    pipe.disable_freeu()
    assert described() == seen[0]
    for processor in (AttnProcessor(), IPAdapterAttnProcessor2_0(8, 8, scale=1.0)):
        attention.processor = processor  # add_module and __setattr__ keep these in different places
        seen.append(described())
    processor.scale = [0.5]
    seen.append(described())
    assert len(set(seen)) == len(seen)


def test_where_a_network_was_read_from_is_not_compared() -> None:
    pipe = build("sd3")
    plain = describe_call(pipe, (pipe.transformer,), {})
    pipe.transformer.register_to_config(_name_or_path="/somewhere/else")
    assert describe_call(pipe, (pipe.transformer,), {}) == plain
    pipe.scheduler.register_to_config(shift=1.5)
    assert describe_call(pipe, (pipe.transformer,), {}) != plain


class Thing:
    """Its repr holds its address."""


def test_objects_in_different_places_are_described_alike() -> None:
    assert " at 0x" in repr(Thing())
    one, other = Thing(), Thing()
    assert repr(one) != repr(other)
    assert describe(one) == describe(other)
    assert describe([{"a": one}]) == describe([{"a": other}])
    assert describe(one) != describe(threading.Lock())
    assert describe(functools.partial(print, 1)) == describe(functools.partial(print, 1))
    assert describe(lambda: 1) == describe(lambda: 1)


def test_a_text_that_speaks_of_an_address_is_a_text() -> None:
    assert describe("a house at 0x12") != describe("a house")


def test_what_a_device_computes_depends_on_more_than_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    identity = device_identity(cpu)
    assert device_identity(cpu) == identity
    assert torch.__version__ in identity
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        assert device_identity(cpu) != identity
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert device_identity(cpu) != identity


def test_ranks_that_agree_pass() -> None:
    assert outcomes({"prompt": "'a'"}, {"prompt": "'a'"}) == [None, None]


def check_usage_errors(results: list[Any], sentence: str) -> None:
    """Every rank raises the same sentence."""
    for result in results:
        assert type(result) is UsageError
        assert str(result) == sentence


def test_a_disagreement_names_the_argument_and_both_values() -> None:
    sentence = "ranks disagree on prompt: rank 0 has 'a', rank 2 has 'b'; make the same call on every rank"
    check_usage_errors(outcomes({"prompt": "'a'"}, {"prompt": "'a'"}, {"prompt": "'b'"}), sentence)


def test_a_missing_argument_is_a_disagreement() -> None:
    with pytest.raises(UsageError, match="disagree on steps: rank 0 has nothing, rank 1 has 5"):
        require_same(Answered([({}, None), ({"steps": "5"}, None)]), {})


def test_what_ranks_say_beside_may_differ() -> None:
    same = {"prompt": "'a'"}
    assert require_same(Answered([(same, 1), (same, 2)]), same, 1) == [1, 2]


def test_of_long_texts_the_part_that_differs_is_shown() -> None:
    long = "a very long prompt, " * 50
    result, _ = outcomes({"prompt": long + "with a ring" + long}, {"prompt": long + "with a cube" + long})
    assert "with a ring" in str(result)
    assert "with a cube" in str(result)
    assert len(str(result)) < 400


def test_a_users_mistake_on_one_rank_is_raised_by_all_with_its_name() -> None:
    mistake = UsageError("no such model")
    results = outcomes({}, mistake)
    check_usage_errors(results, "rank 1 cannot start: no such model")
    assert results[1].__cause__ is mistake


def test_mistakes_of_two_ranks() -> None:
    results = outcomes(UsageError("one"), {}, UsageError("another"))
    check_usage_errors(results, "rank 0 cannot start: one; rank 2 cannot start: another")


def test_a_mistake_that_all_ranks_share_is_told_once() -> None:
    check_usage_errors(outcomes(UsageError("bad value"), UsageError("bad value")), "bad value")


def failing_description() -> Exception:
    try:
        return Exception({}["prompt"])
    except KeyError as error:
        return error


class Unpicklable(Exception):
    """As some of CUDA's errors."""

    def __init__(self) -> None:
        super().__init__("a lost handle")
        self.handle = threading.Lock()


def test_an_error_of_another_kind_stays_what_it_is_and_the_others_hear_of_it() -> None:
    error = failing_description()
    mine, other = outcomes(error, {})
    assert mine is error
    assert "failing_description" in "".join(traceback.format_exception(mine))
    assert type(other) is RankError
    assert str(other) == "rank 0 cannot start: 'prompt'"


def test_a_value_error_that_is_no_mistake_of_the_user_stays_what_it_is() -> None:
    error = ValueError("from deep inside")
    mine, other = outcomes(error, {})
    assert mine is error
    assert type(other) is RankError


def test_an_error_that_cannot_be_pickled_leaves_nobody_waiting() -> None:
    error = Unpicklable()
    mine, other = outcomes(error, {})
    assert mine is error
    assert str(other) == "rank 0 cannot start: a lost handle"


def test_errors_of_all_kinds_at_once() -> None:
    broken = failing_description()
    mistaken, own, bystander = outcomes(UsageError("no such model"), broken, {})
    assert own is broken
    for result in (mistaken, bystander):
        assert type(result) is RankError
        assert str(result) == "rank 0 cannot start: no such model; rank 1 cannot start: 'prompt'"


def test_errors_of_another_kind_on_all_ranks_stay_what_they_are() -> None:
    first, second = failing_description(), failing_description()
    assert outcomes(first, second) == [first, second]


def test_the_digest_of_the_global_random_state_follows_it() -> None:
    torch.manual_seed(1)
    before = random_state_digest()
    assert random_state_digest() == before
    torch.rand(1)
    assert random_state_digest() != before
