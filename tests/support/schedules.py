"""Settings by which short runs switch where a test wants them to, and callbacks that end guidance."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from hybridiff import PublishedSettings
from hybridiff.schedule.calibration import Calibration


def split_at(kind: str, index: int) -> Calibration:
    """A calibration that knows nothing but where a network is split for a kind of steps."""
    return Calibration("nobody's model", (), {kind: index})


def capped(
    steps: int,
    tau1: int,
    parallel_steps: int,
    split_point: int | None = None,
    rule: dict[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    """A config of `published` whose cap decides: tau1 is where the test wants it, tau1+1 .. tau1+k are pipelined."""
    settings = {"slope_window": steps, "slope_threshold": 1e-9, "tau_cap": tau1, "parallel_steps": parallel_steps}
    where = {} if split_point is None else {"calibration": split_at("pipelined", split_point)}
    return {"strategy": "published", "published": PublishedSettings(**settings | (rule or {})), **where, **config}


def guidance_until(name: str, last_step: int) -> dict[str, Any]:
    """Arguments of a call whose callback ends guidance after a step, for any number of images."""
    texts = ["prompt_embeds", *(["pooled_prompt_embeds"] if name.startswith("sd3") else [])]

    def end_guidance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step != last_step:
            return tensors
        pipe._guidance_scale = 0.0
        return tensors | {text: tensors[text].chunk(2)[1] for text in texts}

    return {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": ["latents", *texts]}


def callback_at(step_of_action: int, action: Callable[[Any], None]) -> Callable[..., dict[str, Any]]:
    """A step-end callback that does something to the pipeline at the end of one step."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == step_of_action:
            action(pipe)
        return tensors

    return callback


def interrupt_after(last_step: int) -> Callable[..., dict[str, Any]]:
    """A step-end callback by which a user stops a pipeline."""
    return callback_at(last_step, lambda pipe: setattr(pipe, "_interrupt", True))


def guidance_except(name: str, off: Collection[int]) -> dict[str, Any]:
    """Arguments of a call whose callback turns guidance off for some steps, and on again."""
    texts = ["prompt_embeds", *(["pooled_prompt_embeds"] if name.startswith("sd3") else [])]
    kept: dict[str, Any] = {}

    def turn(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not kept:
            kept.update({"scale": pipe._guidance_scale} | {text: tensors[text] for text in texts})
        is_off = step + 1 in off
        pipe._guidance_scale = 0.0 if is_off else kept["scale"]
        return tensors | {text: kept[text].chunk(2)[1] if is_off else kept[text] for text in texts}

    return {"callback_on_step_end": turn, "callback_on_step_end_tensor_inputs": ["latents", *texts]}
