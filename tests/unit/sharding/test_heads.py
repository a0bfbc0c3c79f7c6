"""Attention by heads: what ranks make of their tokens together is what attention over all of them makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hybridiff.distributed.comm import Heard
from hybridiff.sharding import heads
from hybridiff.sharding.attention import WholeAttention
from hybridiff.sharding.group import ThreadGroup, play
from hybridiff.sharding.heads import heads_to_tokens, is_cheaper_by_heads, tokens_to_heads
from support.oracles import relative_difference
from support.shards import in_dtype, ranks, shared, whole

TRANSFORMERS = (
    "StableDiffusion3Pipeline:3.5",
    "FluxPipeline",
    "Flux2Pipeline",
    "QwenImagePipeline",
    "WanPipeline",
    "LTXPipeline",
    "HeliosPipeline",
)


class CountingGroup(ThreadGroup):
    """Counts its messages of either kind."""

    gathers, exchanges = 0, 0

    def start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        self.gathers += 1
        return super().start_gather(tensor, shapes)

    def all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        self.exchanges += 1
        return super().all_to_all(tensor)


@pytest.fixture
def exchange_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages of tiny networks are so short that keys would be gathered."""
    monkeypatch.setattr(heads, "LATENCY", -(2**30))


def counting(parts: int) -> list[CountingGroup]:
    return [CountingGroup(index, parts) for index in range(parts)]


def tokens(lengths: tuple[int, ...], heads: int = 4, seed: int = 1) -> list[torch.Tensor]:
    """The tokens of each rank, (2, heads, length, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, heads, length, 3, generator=generator, dtype=torch.float64) for length in lengths]


def attend(
    query: list[torch.Tensor], key: list[torch.Tensor], value: list[torch.Tensor], **options: Any
) -> tuple[list[torch.Tensor], CountingGroup]:
    """What ranks make of one attention, each of its part, and one of them."""
    group = counting(len(query))

    def work(rank: CountingGroup) -> torch.Tensor:
        with WholeAttention(rank, "layer"):
            own = {name: mask[..., rank.index] for name, mask in options.items() if name == "attn_mask"}
            return F.scaled_dot_product_attention(
                query[rank.index], key[rank.index], value[rank.index], **(options | own)
            )

    return play(group, work), group[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [(3, 3), (4, 3), (2, 1, 1, 2)])
def test_heads_are_traded_for_tokens_and_back(lengths: tuple[int, ...]) -> None:
    own, other = tokens(lengths), tokens(lengths, seed=2)

    def work(rank: ThreadGroup) -> tuple[list[torch.Tensor], torch.Tensor]:
        traded = tokens_to_heads(rank, [own[rank.index], other[rank.index]], lengths)
        return traded, heads_to_tokens(rank, traded[1], lengths)

    for index, (traded, back) in enumerate(play(ranks(len(lengths)), work)):
        for tensor, parts in zip(traded, (own, other), strict=True):
            assert torch.equal(tensor, torch.cat(parts, -2).chunk(len(lengths), 1)[index])
        assert torch.equal(back, other[index])


@pytest.mark.usefixtures("exchange_always")
@pytest.mark.parametrize("lengths", [(5, 5), (5, 4), (3, 3, 2, 2)])
def test_attention_by_heads(lengths: tuple[int, ...]) -> None:
    query, key, value = (tokens(lengths, seed=seed) for seed in (1, 2, 3))
    made, rank = attend(query, key, value, scale=0.3)
    expected = F.scaled_dot_product_attention(*(torch.cat(parts, -2) for parts in (query, key, value)), scale=0.3)
    assert relative_difference(torch.cat(made, -2), expected) <= 1e-14
    assert (rank.gathers, rank.exchanges) == (0, 2)


@pytest.mark.usefixtures("exchange_always")
@pytest.mark.parametrize(
    ("query", "key", "options"),
    [
        pytest.param(tokens((3, 3, 3)), tokens((3, 3, 3)), {}, id="heads that three ranks cannot share"),
        pytest.param(tokens((3, 2)), tokens((3, 3)), {}, id="as many queries as keys on one rank only"),
        pytest.param(tokens((3, 3)), tokens((3, 3), heads=2), {"enable_gqa": True}, id="fewer heads of keys"),
        pytest.param(
            tokens((3, 3)), tokens((3, 3)), {"attn_mask": torch.tensor([True, False, True])[:, None]}, id="a mask"
        ),
    ],
)
def test_keys_are_gathered_where_heads_cannot_be_exchanged(
    query: list[torch.Tensor], key: list[torch.Tensor], options: dict[str, Any]
) -> None:
    mask = options.get("attn_mask")
    if mask is not None:
        options = {"attn_mask": mask.expand(3, len(query))[None]}
    made, rank = attend(query, key, key, **options)
    whole_mask = {} if mask is None else {"attn_mask": mask.flatten().repeat(len(query))[None]}
    keys = torch.cat(key, -2)
    expected = F.scaled_dot_product_attention(torch.cat(query, -2), keys, keys, **(options | whole_mask))
    assert relative_difference(torch.cat(made, -2), expected) <= 1e-14
    assert rank.exchanges == 0


def test_the_cheaper_way_is_chosen() -> None:
    """Bytes decide for four ranks, latency against two; the longest part counts, whoever has it."""
    large, small = torch.zeros(1, 8, 2048, 64), torch.zeros(1, 8, 16, 64)
    assert not is_cheaper_by_heads(large, (2048, 2048))
    assert is_cheaper_by_heads(large, (2048,) * 4)
    assert is_cheaper_by_heads(large[:, :, :2047], (2048, 2048, 2048, 2047))
    assert is_cheaper_by_heads(small, (16, 2048, 2048, 2048))
    assert not is_cheaper_by_heads(small, (16,) * 4)


@pytest.mark.usefixtures("exchange_always")
@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_networks_are_the_whole_in_float64(name: str, parts: int) -> None:
    sharded, arguments = in_dtype(name, torch.float64)
    group = counting(parts)
    assert relative_difference(shared(sharded, arguments, group), whole(sharded.network, arguments)) <= 1e-10
    heads_of_all = sharded.network.config.num_attention_heads
    assert (group[0].exchanges > 0) == (heads_of_all % parts == 0)


@pytest.mark.usefixtures("exchange_always")
@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline:3.5", "FluxPipeline", "WanPipeline"])
def test_networks_of_uneven_parts_and_several_images(name: str) -> None:
    changes = {"height": 48, "num_videos_per_prompt": 3} if name == "WanPipeline" else {"num_images_per_prompt": 3}
    sharded, arguments = in_dtype(name, torch.float64, **({"height": 20} | changes))
    group = counting(2)
    assert relative_difference(shared(sharded, arguments, group), whole(sharded.network, arguments)) <= 1e-10
    assert group[0].exchanges > 0
