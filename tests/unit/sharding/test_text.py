"""Keys and values of a text are computed once a run, and never stale."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.hooks import ModelHook
from diffusers.models.attention_processor import Attention
from torch import nn

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser.attached import AttachedHook
from hybridiff.sharding import text as text_module
from hybridiff.sharding.group import ThreadGroup
from hybridiff.sharding.network import shard_network
from hybridiff.sharding.text import made_of_text
from support.networks import NETWORKS, UNETS, evaluation_of
from support.shards import ranks, shared
from zoo import ZOO, run

NAME = "StableDiffusionPipeline"


class Layer:
    """A layer that makes keys of a text, in a part of a picture."""

    def __init__(self) -> None:
        self.linear: Any = nn.Linear(6, 8)
        self.group = ThreadGroup(0, 2)
        self.text = torch.randn(2, 3, 6)

    def __call__(self, text: torch.Tensor) -> torch.Tensor:
        (made,) = made_of_text(self.group, "keys", [self.linear], text)
        return made

    def is_right(self, made: torch.Tensor, text: torch.Tensor) -> bool:
        return torch.equal(made, self.linear(text))


@pytest.fixture
def layer() -> Any:
    with torch.no_grad():
        yield Layer()


def test_keys_of_the_same_text_are_made_once(layer: Layer) -> None:
    first = layer(layer.text)
    assert layer.is_right(first, layer.text)
    assert layer(layer.text) is first
    assert layer(layer.text[:]) is first  # as pipelines cut rows out at each step
    layer.group.kept.clear()
    assert layer(layer.text) is not first


class Hook(ModelHook):
    """Of somebody else; what it does is not known."""


def wrap(layer: Layer) -> None:
    layer.linear = nn.Sequential(layer.linear)


def new_weights(layer: Layer) -> None:
    layer.linear.weight = nn.Parameter(torch.randn(8, 6))


CHANGES: dict[str, Callable[[Layer], object]] = {
    "text": lambda layer: layer.text.add_(1),
    "another text": lambda layer: setattr(layer, "text", layer.text.clone()),
    "rows": lambda layer: setattr(layer, "text", layer.text[:1]),
    "weights": lambda layer: layer.linear.weight.add_(1),
    "other weights": new_weights,
    "weights elsewhere": lambda layer: setattr(layer.linear.weight, "data", torch.randn(8, 6)),
    "bias": lambda layer: layer.linear.bias.add_(1),
    "no bias": lambda layer: setattr(layer.linear, "bias", None),
    "what was made": lambda layer: layer(layer.text).mul_(2),
    "LoRA": wrap,
    "a hook of diffusers": lambda layer: AttachedHook(layer.linear, Hook(), "test"),
    "a hook of torch": lambda layer: layer.linear.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_change_they_are_made_anew(change: Callable[[Layer], object], layer: Layer) -> None:
    before = layer(layer.text)
    change(layer)
    made = layer(layer.text)
    assert made is not before
    assert layer.is_right(made, layer.text)


@pytest.mark.parametrize(
    "around",
    [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["gradients", "autocast"],
)
def test_where_more_decides_nothing_is_kept(around: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
    layer = Layer()
    with torch.no_grad():
        plain = layer(layer.text)
        layer.group.kept.clear()
    with around():
        made = layer(layer.text)
        assert layer(layer.text) is not made
        torch.testing.assert_close(made.float(), plain, atol=0.05, rtol=0.05)
    assert not any(layer.group.kept.values())


def test_keys_made_in_inference_mode_are_of_use_outside(layer: Layer) -> None:
    with torch.inference_mode():
        made = layer(layer.text)
    assert layer(layer.text) is made
    made.add_(1)
    assert layer.is_right(layer(layer.text), layer.text)


def test_a_text_of_inference_mode_is_not_kept(layer: Layer) -> None:
    with torch.inference_mode():
        text = torch.randn(2, 3, 6)
    assert layer(text) is not layer(text)


def test_the_latest_texts_are_kept(layer: Layer) -> None:
    texts = [torch.randn(1, 3, 6) for _ in range(text_module._MOST_TEXTS + 1)]
    made = [layer(text) for text in texts]
    assert all(layer(text) is own for text, own in zip(texts[1:], made[1:], strict=True))
    assert layer(texts[0]) is not made[0]


@pytest.mark.parametrize("name", UNETS)
def test_a_network_predicts_the_same_bits(name: str) -> None:
    network: Any = NETWORKS[name]()
    sharded = shard_network(network)
    assert sharded is not None
    group = ranks(2)
    for images, seed in ((1, 3), (1, 4), (2, 3)):
        torch.manual_seed(seed)
        arguments = evaluation_of(network, images, 16, 11).calls[0].arguments
        expected = shared(sharded, arguments, 2)  # by ranks that have seen no text yet
        with torch.no_grad():
            assert all(torch.equal(shared(sharded, arguments, group), expected) for _ in range(2))
    kept = [key for key in group[0].kept if isinstance(key, Attention)]
    layers = [path for path, _ in network.named_modules() if path.endswith("attn2")]
    assert len(kept) == len(layers) > 0


def test_a_run_forgets_its_texts() -> None:
    def images(prompt: str, pipe: Any) -> torch.Tensor:
        return run(ZOO[NAME], pipe, prompt=prompt)

    with parallelize(ZOO[NAME].build(), ParallelConfig(devices=4, shards=2, simulate=True)) as parallel:
        groups = parallel._setup.groups
        made = [images(prompt, parallel) for prompt in ("a red ring", "two blue dots", "a red ring")]
        assert groups._groups[2]
        assert all(group.kept == {} for group in groups._groups[2])
    assert torch.equal(made[0], made[2])
    for prompt, one in zip(("a red ring", "two blue dots"), made, strict=False):
        torch.testing.assert_close(one, images(prompt, ZOO[NAME].build()), atol=1e-4, rtol=1e-4)
