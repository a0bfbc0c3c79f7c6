"""Where streams of tokens are cut: cuts, and the plans that diffusers has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from torch import nn

from hybridiff.sharding.tokens import Cut, ModuleCuts, known_cuts
from support.shards import ranks

TOKENS = torch.arange(2 * 7 * 3).reshape(2, 7, 3)


class Planned(nn.Module):
    """A network of two blocks with the plan of a family."""

    _cp_plan: Any = None

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self._cp_plan = plan
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(1, 1)}) for _ in range(2)])
        self.rope, self.proj_out = nn.Identity(), nn.Identity()


def test_a_cut_takes_a_part_that_differs_by_one_at_most() -> None:
    parts = [Cut(1, 3).part(TOKENS, group) for group in ranks(3)]
    assert [part.shape[1] for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat(parts, 1), TOKENS)


@pytest.mark.parametrize("value", [None, 0.5, "text", {"scale": 1.0}, TOKENS[0]])
def test_what_has_other_dimensions_or_is_no_tensor_stays_whole(value: Any) -> None:
    assert Cut(1, 3).part(value, ranks(2)[1]) is value
    assert not Cut(1, 3).fits(value)


def test_a_cut_takes_a_part_of_each_in_a_list() -> None:
    made = Cut(1).part([TOKENS, (TOKENS[0], None)], ranks(7)[6])
    assert torch.equal(made[0], TOKENS[:, 6:])
    assert torch.equal(made[1][0], TOKENS[0][:, 3:])  # shorter than the number of parts: an empty one
    assert made[1][1] is None


def test_outputs_are_cut_by_place() -> None:
    cuts, group = ModuleCuts(outputs={0: Cut(1, 3)}), ranks(2)[0]
    assert torch.equal(cuts.cut_outputs(TOKENS, group), TOKENS[:, :4])
    first, second = cuts.cut_outputs((TOKENS, TOKENS), group)
    assert torch.equal(first, TOKENS[:, :4])
    assert second is TOKENS
    assert ModuleCuts().cut_outputs(TOKENS, group) is TOKENS


def test_a_plan_is_read_with_stars_and_merged_entries() -> None:
    cuts = known_cuts(
        Planned(
            {
                "": {"hidden_states": ContextParallelInput(1, 3)},
                "rope": {0: ContextParallelInput(0, 2, split_output=True)},
                "blocks.*.attn": {"hidden_states": ContextParallelInput(1, 3)},
                "blocks.1.attn": ContextParallelOutput(1, 3),
                "blocks.7.attn": ContextParallelOutput(1, 3),  # for larger ones of the family
                "proj_out": ContextParallelOutput(2, 3),
            }
        )
    )
    assert cuts is not None
    assert cuts.keys() == {"", "rope", "blocks.0.attn", "blocks.1.attn", "proj_out"}
    assert cuts["rope"] == ModuleCuts(outputs={0: Cut(0, 2)})
    assert cuts["blocks.0.attn"] == ModuleCuts({"hidden_states": Cut(1, 3)})
    assert cuts["blocks.1.attn"] == ModuleCuts({"hidden_states": Cut(1, 3)}, joined=1)
    assert cuts["proj_out"] == ModuleCuts(joined=2)
    assert cuts[""].arguments.keys() >= {"hidden_states", "controlnet_block_samples"}


def test_a_network_without_a_plan_is_not_known() -> None:
    assert known_cuts(Planned(None)) is None
