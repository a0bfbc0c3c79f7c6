"""Tiny tokenizers and text encoders with random weights, built in code; those of CLIP are in `support.pipelines`."""

from __future__ import annotations

import string
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from support.pipelines import TEXT_TOKENS, TEXT_WIDTH

PAD, END, UNKNOWN, START = "<pad>", "</s>", "<unk>", "<s>"
SPECIAL_TOKENS = (PAD, END, UNKNOWN, START)
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *string.ascii_lowercase, " "))}


def spelling_tokenizer(
    length: int = TEXT_TOKENS, ends: bool = True, template: str | None = None, **settings: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer that spells: one token a letter, then an end token if `ends`, as T5 has it.

    Args:
        length: The greatest number of tokens, `model_max_length`.
        ends: Whether a text ends with `END`.
        template: A chat template, where the pipeline applies one.
        settings: More arguments of the tokenizer.
    """
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", special_tokens=[(END, VOCABULARY[END])]
        )
    settings = {"model_input_names": ["input_ids", "attention_mask"]} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        bos_token=START,
        chat_template=template,
        **settings,
    )


def t5_encoder(width: int = TEXT_WIDTH, multilingual: bool = False) -> Any:
    """The encoder of a T5, or of its multilingual kin, with two layers."""
    sizes = {"vocab_size": len(VOCABULARY), "d_model": width, "d_kv": width // 2, "d_ff": 2 * width}
    counts = {"num_layers": 2, "num_heads": 2}
    if multilingual:
        return seeded(UMT5EncoderModel, UMT5Config(**sizes, **counts))
    return seeded(T5EncoderModel, T5Config(**sizes, **counts))


def bert() -> Any:
    """A BERT with two layers."""
    return seeded(BertModel, BertConfig(**_SIZES), factor=50.0)


def gemma2() -> Any:
    """A Gemma 2 with two layers."""
    return seeded(Gemma2Model, Gemma2Config(**_SIZES, head_dim=8, num_key_value_heads=2))


_SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 2 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": VOCABULARY[PAD],
}


def embeddings(*shape: int, seed: int) -> torch.Tensor:
    """Numbers in place of an encoded text."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(model: type, config: Any, factor: float = 1.0) -> Any:
    """A model of transformers, the same weights at every call, its word embeddings times `factor`."""
    torch.manual_seed(2)
    network = model(config).eval()
    with torch.no_grad():
        network.get_input_embeddings().weight.mul_(factor)
    return network
