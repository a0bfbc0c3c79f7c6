"""Transformers by tokens: what ranks make of their parts together is what the whole network makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff.sharding.group import ThreadGroup
from support.oracles import relative_difference
from support.shards import Arguments, in_dtype, is_as_exact_as_whole, ranks, shared, whole

THREE, THREE_FILMS = {"num_images_per_prompt": 3}, {"num_videos_per_prompt": 3}

OTHERS: dict[str, dict[str, Any]] = {
    "StableDiffusion3Pipeline": {"height": 20} | THREE,
    "StableDiffusion3Pipeline:3.5": {"height": 20} | THREE,
    "StableDiffusion3ControlNetPipeline": {"width": 24} | THREE,
    "FluxPipeline": {"height": 20} | THREE,
    "FluxPipeline:distilled": {"width": 28} | THREE,
    "FluxControlNetPipeline": {"height": 20} | THREE,
    "FluxKontextPipeline": THREE,
    "Flux2Pipeline": {"height": 20} | THREE,
    "Flux2KleinPipeline:edit": THREE,
    "QwenImagePipeline": {"height": 48, "width": 80} | THREE,
    "QwenImageControlNetPipeline": {"height": 48} | THREE,
    "QwenImageEditPlusPipeline": {"width": 64},
    "WanPipeline": {"height": 48, "num_frames": 9} | THREE_FILMS,
    "WanPipeline:timesteps-a-token": {"height": 48} | THREE_FILMS,
    "WanImageToVideoPipeline": {"height": 48} | THREE_FILMS,
    "LTXPipeline": {"height": 96} | THREE_FILMS,
    "LTXConditionPipeline": {"height": 96} | THREE_FILMS,
    "HeliosPipeline": {"height": 48} | THREE_FILMS,
}
"""Specimens of all families, each with arguments of a call of another shape: of three images, of uneven parts."""

WITH_WHOLE_TEXT = ("WanPipeline", "WanPipeline:timesteps-a-token", "WanImageToVideoPipeline", "HeliosPipeline")
"""Those whose text each rank has all of."""

TEXT = ("encoder_hidden_states", "encoder_hidden_states_mask", "encoder_attention_mask")

every = pytest.mark.parametrize("name", OTHERS)


def with_short_text(arguments: Arguments, tokens: int) -> Arguments:
    """The same call whose text has so many tokens only."""
    short = {name: arguments[name][:, :tokens] for name in TEXT if arguments.get(name) is not None}
    ids = arguments.get("txt_ids")
    return arguments | short | ({} if ids is None else {"txt_ids": ids.narrow(-2, 0, tokens)})


@every
@pytest.mark.parametrize("parts", [2, 3, 4, 8])
def test_parts_are_the_whole_to_rounding(name: str, parts: int) -> None:
    sharded, arguments = in_dtype(name, torch.float32)
    assert relative_difference(shared(sharded, arguments, parts), whole(sharded.network, arguments)) <= 1e-5


@every
def test_parts_are_the_whole_in_float64(name: str) -> None:
    sharded, arguments = in_dtype(name, torch.float64)
    assert relative_difference(shared(sharded, arguments, 3), whole(sharded.network, arguments)) <= 1e-10


@every
def test_parts_are_as_exact_as_the_whole_in_bfloat16(name: str) -> None:
    assert is_as_exact_as_whole(name, torch.bfloat16, parts=3)


@every
def test_a_group_evaluates_calls_of_other_shapes_in_turn(name: str) -> None:
    sharded, first = in_dtype(name, torch.float32)
    group = ranks(3)
    for arguments in (first, in_dtype(name, torch.float32, **OTHERS[name])[1], first):
        assert relative_difference(shared(sharded, arguments, group), whole(sharded.network, arguments)) <= 1e-5


@every
def test_a_text_may_be_as_short_as_the_number_of_parts(name: str) -> None:
    sharded, recorded = in_dtype(name, torch.float32)
    arguments = with_short_text(recorded, 3)
    parts = min(8, sharded.most_parts(arguments))
    assert parts == (8 if name in WITH_WHOLE_TEXT else 3)
    assert relative_difference(shared(sharded, arguments, parts), whole(sharded.network, arguments)) <= 1e-5


@every
def test_keys_that_are_not_gathered_are_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started = ThreadGroup.start_concatenate

    def start(group: ThreadGroup, place: str, tensor: torch.Tensor, dim: int) -> Callable[[], torch.Tensor]:
        is_of_attention = dim <= 0
        return (lambda: tensor) if is_of_attention else started(group, place, tensor, dim)

    monkeypatch.setattr(ThreadGroup, "start_concatenate", start)
    sharded, arguments = in_dtype(name, torch.float32)
    assert relative_difference(shared(sharded, arguments, 3), whole(sharded.network, arguments)) > 1e-2


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_masks_are_cut_and_gathered_with_their_text(parts: int) -> None:
    name = "QwenImagePipeline"
    sharded, arguments = in_dtype(name, torch.float32, num_images_per_prompt=3)
    texts = arguments["encoder_hidden_states"]
    padding = torch.arange(texts.shape[1]) < torch.tensor([[texts.shape[1]], [5], [17]])
    masked = arguments | {"encoder_hidden_states_mask": padding}
    expected = whole(sharded.network, masked)
    assert relative_difference(expected, whole(sharded.network, arguments)) > 1e-3  # a mask makes a difference
    assert relative_difference(shared(sharded, masked, parts), expected) <= 1e-5
