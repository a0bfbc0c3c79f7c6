from __future__ import annotations

import functools
import gc
import inspect
import weakref
from typing import Any

import pytest
import torch

from hybridiff.denoiser.call import bind_arguments
from hybridiff.denoiser.signature import signature_of


class Network(torch.nn.Module):
    def forward(self, sample: Any, timestep: Any = 0, *, text: Any = None, return_dict: bool = True) -> Any:
        return sample


def anything(sample: Any, **others: Any) -> Any:
    return sample


def only_names(**others: Any) -> Any:
    return others


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((1,), {}), ((1, 2), {"text": 3}), ((), {"text": 3, "sample": 1}), ((1,), {"return_dict": False})],
    ids=repr,
)
def test_binding_is_that_of_the_language(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    forward = Network().forward
    assert list(bind_arguments(forward, args, kwargs).items()) == list(
        inspect.signature(forward).bind(*args, **kwargs).arguments.items()
    )


@pytest.mark.parametrize(
    ("args", "kwargs"), [((1, 2, 3), {}), ((1,), {"sample": 1}), ((1,), {"unknown": 1}), ((), {})], ids=repr
)
def test_what_does_not_fit_is_the_error_of_the_language(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="argument"):
        bind_arguments(Network().forward, args, kwargs)


def test_arguments_of_any_name_keep_theirs() -> None:
    assert bind_arguments(anything, (1,), {"text": 2}) == {"sample": 1, "text": 2}
    assert bind_arguments(only_names, (), {"sample": 1}) == {"sample": 1}
    assert signature_of(anything).takes_return_dict
    assert not signature_of(lambda sample: sample).takes_return_dict


def test_what_is_wrapped_around_a_forward_has_its_signature() -> None:
    network = Network()
    wrapped = functools.update_wrapper(functools.partial(anything, network), network.forward)
    assert signature_of(wrapped) == signature_of(network.forward) == signature_of(Network().forward)


def test_no_network_is_kept_alive() -> None:
    network = Network()
    signature_of(functools.update_wrapper(functools.partial(anything, network), network.forward))
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None
