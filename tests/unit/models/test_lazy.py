"""Encoders whose weights stay on the disk until something needs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from hybridiff import load_pipeline
from hybridiff.models.folder import open_folder
from hybridiff.models.lazy import is_unread, lazy_encoders

ENCODERS = {"tiny-sdxl": ("text_encoder", "text_encoder_2"), "tiny-sd3": ("text_encoder", "text_encoder_2")}
TOKENS = torch.arange(20)[None]


pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_without_weights_looks_like_one_that_has_them(name: str, dtype: str) -> None:
    pipe, whole = load_pipeline(name, dtype=dtype, encodes=False), load_pipeline(name, dtype=dtype)
    assert pipe.device == whole.device
    assert pipe.config == whole.config
    for part in ENCODERS[name]:
        encoder, other = getattr(pipe, part), getattr(whole, part)
        assert is_unread(encoder)
        assert not is_unread(other)
        assert all(weight.is_meta for weight in (*encoder.parameters(), *encoder.buffers()))
        assert isinstance(encoder, type(other))
        assert (encoder.dtype, encoder.device, encoder.training) == (other.dtype, other.device, other.training)
        assert type(encoder).__name__ == type(other).__name__
        assert inspect.signature(encoder.forward) == inspect.signature(other.forward)
    assert not pipe.vae.decoder.conv_in.weight.is_meta


@pytest.mark.parametrize("name", ENCODERS)
def test_weights_are_read_by_a_call(name: str) -> None:
    pipe, whole = load_pipeline(name, encodes=False), load_pipeline(name)
    for part in ENCODERS[name]:
        encoder, other = getattr(pipe, part), getattr(whole, part)
        said, expected = (one(TOKENS, output_hidden_states=True) for one in (encoder, other))
        assert torch.equal(said[0], expected[0])
        assert torch.equal(said.hidden_states[-2], expected.hidden_states[-2])
        assert not is_unread(encoder)
        assert type(encoder) is type(other)
        assert not any(layer._forward_pre_hooks for layer in encoder.modules())
        assert {"forward", "_unread"}.isdisjoint(vars(encoder))


def add_a_lora(encoder: Any) -> None:
    encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))


@pytest.mark.parametrize(
    "use",
    [
        lambda encoder: encoder.text_model.final_layer_norm(torch.ones(1, 64)),
        lambda encoder: encoder.get_input_embeddings(),
        lambda encoder: encoder.state_dict(),
        add_a_lora,
    ],
    ids=["a layer", "tokens", "weights", "a LoRA"],
)
def test_weights_are_read_by_whatever_needs_them(use: Callable[[Any], Any]) -> None:
    encoder = load_pipeline("tiny-sd3", encodes=False).text_encoder
    layer = encoder.text_model.final_layer_norm
    use(encoder)
    assert not is_unread(encoder)
    assert encoder.text_model.final_layer_norm is layer
    assert not layer.weight.is_meta


@pytest.mark.parametrize(
    "cast", [lambda pipe: pipe.to(torch.float64), lambda pipe: pipe.text_encoder.half().double()], ids=["to", "double"]
)
def test_weights_are_of_the_dtype_that_they_were_cast_to(cast: Callable[[Any], Any]) -> None:
    pipe = load_pipeline("tiny-sdxl", encodes=False)
    cast(pipe)
    encoder = pipe.text_encoder.to("cpu")
    assert is_unread(encoder)
    assert encoder.dtype == torch.float64
    encoder(TOKENS)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float64}


def test_what_is_quantized_or_has_no_weights_is_loaded_as_ever(tmp_path: Path) -> None:
    pipe = load_pipeline("tiny-sdxl")
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    config = tmp_path / "text_encoder" / "config.json"
    quantized = '"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true},'
    config.write_text(config.read_text().replace("{", "{" + quantized, 1))
    assert lazy_encoders(open_folder("mine", tmp_path), torch.float32).keys() == {"text_encoder_2"}
    (tmp_path / "text_encoder_2" / "model.safetensors").unlink()
    assert lazy_encoders(open_folder("mine", tmp_path), torch.float32) == {}
