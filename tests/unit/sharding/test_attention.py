"""What an attention layer's processor is given in parts of a picture: the same as by the stock layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention

from hybridiff.denoiser.attached import AttachedHook
from hybridiff.sharding.attention import AttentionHook
from hybridiff.sharding.group import ThreadGroup
from hybridiff.sharding.place import in_parts

TEXT, MASK = torch.ones(1, 3, 6), torch.ones(1, 3)

CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "by name": ((), {"encoder_hidden_states": TEXT, "attention_mask": MASK}),
    "without a mask": ((), {"encoder_hidden_states": TEXT}),
    "by place": ((TEXT, MASK), {}),
    "something further": ((), {"encoder_hidden_states": TEXT, "further": 3}),
    "something unknown": ((), {"encoder_hidden_states": TEXT, "unknown": 3}),
}


class Processor:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def __call__(
        self, attention: Attention, picture: torch.Tensor, encoder_hidden_states: Any, attention_mask: Any, **rest: Any
    ) -> torch.Tensor:
        self.given.append((attention, picture, encoder_hidden_states, attention_mask, rest))
        return picture


class Strict(Processor):
    """Takes one thing further."""

    def __call__(  # type: ignore[override]
        self,
        attention: Attention,
        picture: torch.Tensor,
        encoder_hidden_states: Any,
        attention_mask: Any,
        further: int = 0,
    ) -> torch.Tensor:
        return super().__call__(attention, picture, encoder_hidden_states, attention_mask, further=further)


class Doubled(Attention):
    """A layer with a forward of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().forward(*args, **kwargs)


@pytest.mark.parametrize("kind", [Attention, Doubled])
@pytest.mark.parametrize("processor", [Processor, Strict])
@pytest.mark.parametrize(("args", "kwargs"), CALLS.values(), ids=CALLS)
def test_a_processor_is_given_the_same(
    args: tuple[Any, ...], kwargs: dict[str, Any], processor: type[Processor], kind: type[Attention]
) -> None:
    layer = kind(8, cross_attention_dim=6, heads=2, dim_head=4, processor=processor())
    picture, given = torch.randn(1, 5, 8), layer.processor.given
    expected = layer(picture, *args, **kwargs)
    AttachedHook(layer, AttentionHook("attn2", False), "test")
    with in_parts(ThreadGroup(0, 2)):
        made = layer(picture, *args, **kwargs)
    assert torch.equal(made, expected)
    first, second = given
    assert all(one is other for one, other in zip(first[:-1], second[:-1], strict=True))
    assert first[-1] == second[-1]
