"""Later calls of a step are told from its first one, and compared with what they turn out to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.denoiser.adapters.other import OtherAdapter
from hybridiff.denoiser.call import DenoiserCall
from hybridiff.denoiser.replay import CallDifference, is_foreseen, same, snapshot, tensor_versions, unknown_things

NETWORK = torch.nn.Identity()

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(0, 9)
    | st.floats(0, 1)
    | st.text(max_size=3)
    | st.integers(1, 4).map(lambda size: torch.arange(float(size)))
    | st.integers(1, 4).map(lambda size: np.arange(size))
)
NAMES = st.sampled_from(["text", "mask", "image", "scale"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=4)


def call_of(arguments: dict[str, Any], sample: float = 0.0, network: torch.nn.Module = NETWORK) -> DenoiserCall:
    whole = {"sample": torch.full((1, 2), sample), "timestep": torch.tensor(sample)} | arguments
    return DenoiserCall(OtherAdapter(), network, network.forward, whole)


def rebuild(value: Any) -> Any:
    """Equal values in containers, tensors and arrays of their own."""
    if isinstance(value, dict):
        return {key: rebuild(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(rebuild(item) for item in value)
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


@given(value=VALUES)
def test_equal_values_are_the_same_whatever_the_objects(value: Any) -> None:
    assert same(value, value)
    assert same(value, rebuild(value))
    assert same(rebuild(value), snapshot(value))


@given(value=VALUES)
def test_another_value_somewhere_is_not_the_same(value: Any) -> None:
    for other in others(value):
        assert not same(value, other)
        assert not same(other, value)


def others(value: Any) -> list[Any]:
    """Values that differ from this one in one place."""
    if isinstance(value, dict):
        changed = [value | {key: other} for key, item in value.items() for other in others(item)]
        return [*changed, value | {"more": None}]
    if isinstance(value, (list, tuple)):
        kind, items = type(value), list(value)
        deep = [kind([*items[:i], other, *items[i + 1 :]]) for i, item in enumerate(items) for other in others(item)]
        return [*deep, kind([*items, None])]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return [value + 1, value[None], None]
    return ["other", torch.ones(1)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2), torch.ones(1, 2)),
        (torch.ones(2), torch.ones(2, device="meta")),
        (torch.ones(1), 1.0),
        (np.ones(1), 1.0),
        (np.ones(1), torch.ones(1)),
        (1, True),
        (["a"], "a"),
        ({"a": 1}, ["a"]),
        (torch.float32, torch.float16),
    ],
    ids=repr,
)
def test_what_only_looks_alike_is_not_the_same(one: Any, other: Any) -> None:
    assert not same(one, other)
    assert not same(other, one)


@given(value=VALUES)
def test_a_snapshot_has_the_same_tensors_in_containers_of_its_own(value: Any) -> None:
    taken = snapshot({"argument": value})
    assert [id(tensor) for tensor in tensors_of(taken)] == [id(tensor) for tensor in tensors_of(value)]
    before = rebuild(value)
    empty(value)
    assert same(taken["argument"], before)


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def empty(value: Any) -> None:
    """Take everything out of containers that can be changed."""
    if isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            empty(item)
    if isinstance(value, (list, dict)):
        value.clear()


@given(first=ARGUMENTS, later=ARGUMENTS)
def test_a_later_call_of_the_next_step_is_foreseen(first: dict[str, Any], later: dict[str, Any]) -> None:
    """Equal values may come in other objects at every step, and arguments in one of the calls only."""
    difference = CallDifference.between(call_of(first), call_of(later))
    foreseen = difference.foresee(call_of(rebuild(first), sample=1.0))
    assert foreseen.sample.tolist() == [[1.0, 1.0]]
    assert is_foreseen(foreseen, tensor_versions(foreseen.arguments), call_of(rebuild(later), sample=1.0))
    assert not is_foreseen(foreseen, tensor_versions(foreseen.arguments), call_of(rebuild(later), sample=2.0))
    assert not is_foreseen(
        foreseen, tensor_versions(foreseen.arguments), call_of(rebuild(later), sample=1.0, network=torch.nn.Identity())
    )
    assert not is_foreseen(foreseen, tensor_versions(foreseen.arguments), call_of(later | {"more": 1}, sample=1.0))


@given(first=ARGUMENTS, later=ARGUMENTS)
def test_a_difference_is_what_differs_and_no_more(first: dict[str, Any], later: dict[str, Any]) -> None:
    difference = CallDifference.between(call_of(first), call_of(later))
    assert difference.absent == first.keys() - later.keys()
    shared = first.keys() & later.keys()
    assert difference.own.keys() == (later.keys() - first.keys()) | {
        name for name in shared if not same(first[name], later[name])
    }


def test_a_dict_that_the_pipeline_changes_between_its_calls_is_kept_as_it_was() -> None:
    """As FLUX does with the images of an IP-Adapter: one dict, other contents."""
    ours, theirs = torch.ones(1), torch.zeros(1)
    settings: dict[str, Any] = {"scale": 0.5, "image": ours}
    first = call_of(snapshot({"attention": settings}))
    settings["image"] = theirs
    difference = CallDifference.between(first, call_of({"attention": settings}))
    settings["image"] = ours
    foreseen = difference.foresee(call_of({"attention": settings}, sample=1.0))
    assert foreseen.arguments["attention"]["image"] is theirs
    assert not is_foreseen(foreseen, tensor_versions(foreseen.arguments), call_of({"attention": settings}, sample=1.0))
    settings["image"] = theirs
    assert is_foreseen(foreseen, tensor_versions(foreseen.arguments), call_of({"attention": settings}, sample=1.0))


def test_arguments_of_one_call_only() -> None:
    difference = CallDifference.between(call_of({"skip": [1]}), call_of({"guidance": None}))
    assert difference.own == {"guidance": None}
    assert difference.absent == {"skip"}
    assert list(difference.foresee(call_of({"skip": [1]})).arguments) == ["sample", "timestep", "guidance"]


class Cache:
    """Keys and values of an earlier call."""


def test_a_state_that_nobody_knows_is_named() -> None:
    call = call_of({"caches": {"layers": [None, Cache()]}, "text": torch.ones(1), "hook": lambda: None})
    assert unknown_things(call) == ["caches", "hook"]


@given(arguments=ARGUMENTS)
def test_plain_things_are_no_state(arguments: dict[str, Any]) -> None:
    plain = {"dtype": torch.float16, "device": torch.device("cpu"), "generator": torch.Generator(), "name": b"x"}
    assert unknown_things(call_of(arguments | plain)) == []
