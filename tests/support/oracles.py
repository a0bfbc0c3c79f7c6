"""What results are held against: written by hand, without the code under test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from support.pipelines import build, denoiser_of, generate


def generated_one_part_after_another(
    name: str, parts: int = 2, scheduler: str | None = None, **changes: Any
) -> torch.Tensor:
    """Latents of a stock pipeline in this process, its denoiser fed with `parts` equal parts of the batch in turn.

    Two parts are the guidance branches; four parts of two images are single rows.
    """
    pipe = build(name, scheduler)
    with one_part_after_another(pipe, parts):
        return generate(pipe, name, **changes)


@contextmanager
def one_part_after_another(pipe: Any, parts: int = 2) -> Iterator[None]:
    """While this lasts, the denoiser evaluates equal parts of each batch in turn, and joins them."""
    network = denoiser_of(pipe)
    part_of = _unet_part if hasattr(pipe, "unet") else _transformer_part
    whole = network.forward

    def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        sample = args[0] if args else kwargs["hidden_states"]
        if sample.shape[0] % parts:  # one image's extra call, or no guidance
            return whole(*args, **kwargs)  # type: ignore[no-any-return]
        return (torch.cat([part_of(whole, parts, index, *args, **kwargs) for index in range(parts)]),)

    network.forward = forward
    try:
        yield
    finally:
        del network.forward


def _unet_part(
    whole: Callable[..., Any],
    parts: int,
    index: int,
    sample: Any,
    timestep: Any,
    *,
    encoder_hidden_states: Any,
    **rest: Any,
) -> torch.Tensor:
    added = rest.pop("added_cond_kwargs", None)
    if added is not None:
        added = {
            "text_embeds": added["text_embeds"].chunk(parts)[index],
            "time_ids": added["time_ids"].chunk(parts)[index],
        }
    text = encoder_hidden_states.chunk(parts)[index]
    output = whole(sample.chunk(parts)[index], timestep, encoder_hidden_states=text, added_cond_kwargs=added, **rest)
    return output[0]  # type: ignore[no-any-return]


def _transformer_part(
    whole: Callable[..., Any],
    parts: int,
    index: int,
    *,
    hidden_states: Any,
    timestep: Any,
    encoder_hidden_states: Any,
    pooled_projections: Any,
    **rest: Any,
) -> torch.Tensor:
    output = whole(
        hidden_states=hidden_states.chunk(parts)[index],
        timestep=timestep.chunk(parts)[index],
        encoder_hidden_states=encoder_hidden_states.chunk(parts)[index],
        pooled_projections=pooled_projections.chunk(parts)[index],
        **rest,
    )
    return output[0]  # type: ignore[no-any-return]


def relative_difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two results, relative to the largest expected value."""
    return float((result - expected).abs().max() / expected.abs().max())


def state_of(pipe: Any) -> dict[str, Any]:
    """Everything that can be told about a pipeline and its parts, deep down: to compare before with after.

    Objects stand as they are, so that an equal one in the place of another counts as a difference.
    """
    state: dict[str, Any] = {f"pipe.{name}": value for name, value in vars(pipe).items()}
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            for name, submodule in module.named_modules():
                for attribute, value in vars(submodule).items():
                    items = value.items() if isinstance(value, dict) else [("", value)]
                    state |= {f"{part}.{name}.{attribute}.{key}": item for key, item in items}
    return state | {f"scheduler.{name}": value for name, value in vars(pipe.scheduler).items()}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names that came, went, or stand for another object."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) is not after.get(name))
