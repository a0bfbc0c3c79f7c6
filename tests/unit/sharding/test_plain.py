"""Attention of U-Nets in parts: which layers it knows, and that it does what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from hybridiff.denoiser.attached import AttachedHook
from hybridiff.sharding import heads
from hybridiff.sharding.attention import AttentionHook, WholeAttention
from hybridiff.sharding.group import ThreadGroup, play
from hybridiff.sharding.place import in_parts
from hybridiff.sharding.plain import attends_plainly
from support.oracles import relative_difference

TEXT = torch.randn(2, 3, 6, dtype=torch.float64)


def layer_with(**options: Any) -> Any:
    torch.manual_seed(0)
    return Attention(8, heads=4, dim_head=2, processor=AttnProcessor2_0(), **options).double()


class Doubled(Attention):
    """A layer with a forward of its own."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().forward(*args, **kwargs)


def in_other_hands() -> Any:
    layer = layer_with()
    layer.set_processor(AttnProcessor())
    return layer


@pytest.mark.parametrize(
    ("layer", "is_plain"),
    [
        (layer_with(), True),
        (layer_with(cross_attention_dim=6), True),
        (layer_with(bias=True, out_bias=False), True),
        (layer_with(norm_num_groups=2), False),
        (layer_with(qk_norm="layer_norm"), False),
        (layer_with(cross_attention_dim=6, cross_attention_norm="layer_norm"), False),
        (layer_with(residual_connection=True), False),
        (layer_with(rescale_output_factor=2.0), False),
        (in_other_hands(), False),
        (Doubled(8, heads=4, dim_head=2, processor=AttnProcessor2_0()), False),
    ],
)
def test_layers_that_do_more_are_not_plain(layer: Any, is_plain: bool) -> None:
    assert attends_plainly(layer, layer.forward) is is_plain


@pytest.fixture
def never_intercepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes another way is told."""
    monkeypatch.delattr(WholeAttention, "__torch_function__")
    monkeypatch.setattr(WholeAttention, "__enter__", lambda _: pytest.fail("intercepted"))


@pytest.mark.usefixtures("never_intercepted")
@pytest.mark.parametrize("lengths", [(5, 5), (4, 3), (2, 1, 1, 2)])
@pytest.mark.parametrize("latency", [heads.LATENCY, -(2**30)], ids=["gathered", "by heads"])
@pytest.mark.parametrize("is_cross", [False, True])
def test_parts_attend_as_the_whole(
    is_cross: bool, latency: int, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "LATENCY", latency)
    layer = layer_with(cross_attention_dim=6 if is_cross else None)
    picture, text = torch.randn(2, sum(lengths), 8, dtype=torch.float64), {"encoder_hidden_states": TEXT}
    given = text if is_cross else {}
    with torch.no_grad():
        expected = layer(picture, **given)
        AttachedHook(layer, AttentionHook("attn", False), "test")

        def work(rank: ThreadGroup) -> torch.Tensor:
            with in_parts(rank):
                made: torch.Tensor = layer(picture.split(lengths, 1)[rank.index], **given)
                return made

        parts = play([ThreadGroup(index, len(lengths)) for index in range(len(lengths))], work)
    assert relative_difference(torch.cat(parts, 1), expected) <= 1e-14


def test_a_mask_goes_to_the_processor() -> None:
    layer = layer_with(cross_attention_dim=6)
    picture, mask = torch.randn(2, 4, 8, dtype=torch.float64), torch.zeros(2, 1, 3, dtype=torch.float64)
    mask[..., 1:] = -torch.inf
    expected = layer(picture, TEXT, mask)
    AttachedHook(layer, AttentionHook("attn2", False), "test")
    with in_parts(ThreadGroup(0, 2)):
        assert torch.equal(layer(picture, encoder_hidden_states=TEXT, attention_mask=mask), expected)
