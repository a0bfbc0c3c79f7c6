"""Kolors: text and perturbed attention; its U-Net is one like that of Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.utils import is_sentencepiece_available

from support import pipelines
from support.pipelines import TEXT_TOKENS, TEXT_WIDTH
from zoo import calls
from zoo.networks import awake, with_parts_of
from zoo.specimen import Specimen
from zoo.text import embeddings


def kolors(name: str) -> Any:
    pipe = pipelines.sdxl()
    awake(pipe.unet, "attn1.to_v", "attn1.to_out.0")
    absent = {"text_encoder": None, "tokenizer": None}
    return with_parts_of(pipe, name, **absent, pag_applied_layers=["down", "mid", "up"])


def encoded(call: Callable[[], dict[str, Any]], **more: Any) -> Callable[[], dict[str, Any]]:
    """The call with embeddings in place of prompts: its text encoder, a ChatGLM, needs a tokenizer of its own."""

    def arguments() -> dict[str, Any]:
        given = {name: value for name, value in call().items() if "prompt" not in name}
        texts = {
            "prompt_embeds": embeddings(1, TEXT_TOKENS, 2 * TEXT_WIDTH, seed=1),
            "negative_prompt_embeds": embeddings(1, TEXT_TOKENS, 2 * TEXT_WIDTH, seed=2),
            "pooled_prompt_embeds": embeddings(1, TEXT_WIDTH, seed=3),
            "negative_pooled_prompt_embeds": embeddings(1, TEXT_WIDTH, seed=4),
        }
        return given | texts | more

    return arguments


SPECIMENS: tuple[Specimen, ...] = (
    Specimen("KolorsPipeline", lambda: kolors("KolorsPipeline"), encoded(calls.text)),
    Specimen(
        "KolorsPAGPipeline", lambda: kolors("KolorsPAGPipeline"), encoded(calls.text, pag_scale=2.0), layout="branches"
    ),
)
if not is_sentencepiece_available():  # without which diffusers has no Kolors
    SPECIMENS = ()
