"""Nested outputs as one message."""

from __future__ import annotations

import pickle

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hybridiff.distributed.nested import Outline

CPU = torch.device("cpu")


def test_an_output_comes_out_as_it_went_in() -> None:
    states = tuple(torch.randn(2, 3, 5).transpose(1, 2).to(dtype) for dtype in (torch.float32, torch.bfloat16))
    mask = torch.tensor([[True, False]])
    output = BaseModelOutputWithPooling(last_hidden_state=states[0], hidden_states=states, pooler_output=torch.empty(0))
    given = (output, [torch.arange(3), mask, None, 2, "two"], torch.tensor(1.5))
    outline = Outline(given)
    sent = pickle.dumps(outline)
    assert len(sent) < 2000, "no tensor travels as an object"
    read = pickle.loads(sent).unpack(outline.pack(CPU))
    assert type(read[0]) is BaseModelOutputWithPooling
    assert read[0].keys() == output.keys()
    assert read[0].hidden_states[0] is read[0].last_hidden_state
    assert read[0].pooler_output.shape == (0,)
    for mine, other in zip(
        (*read[0].hidden_states, *read[1][:2], read[2]), (*states, *given[1][:2], given[2]), strict=True
    ):
        assert torch.equal(mine, other)
        assert mine.dtype == other.dtype
        assert mine.data_ptr() % 64 == 0, "as any other tensor"
    assert read[1][2:] == [None, 2, "two"]


def test_a_cache_stays_where_it_is() -> None:
    output = BaseModelOutputWithPooling(last_hidden_state=torch.ones(2))
    output["past_key_values"] = DynamicCache()
    outline = Outline(output)
    assert pickle.loads(pickle.dumps(outline)).unpack(outline.pack(CPU)).keys() == {"last_hidden_state"}
