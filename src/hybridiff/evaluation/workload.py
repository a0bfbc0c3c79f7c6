"""A model, how it is called, and for which prompts: what the commands that measure have in common."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..config import LEAST_STEPS
from ..distributed.placement import Placement
from ..errors import UsageError
from ..models.bench import GUIDED
from ..models.loading import find_model, load_pipeline
from ..models.schedulers import scheduler_name
from ..models.tiny import EMBEDDED, GUIDANCE
from ..utils.prompts import Prompt, read_prompts


@dataclass(frozen=True)
class Workload:
    """A loaded pipeline and how it is called.

    Attributes:
        model: What the user called it.
        pipe: The stock pipeline, on its device.
        call: Arguments of every call but prompt and seed, the number of steps included.
    """

    model: str
    pipe: Any
    call: dict[str, Any]

    @classmethod
    def load(
        cls,
        model: str,
        arguments: dict[str, Any],
        device: str = "auto",
        dtype: str | None = None,
        scheduler: str | None = None,
        variant: str | None = None,
        model_config: str | None = None,
    ) -> Workload:
        """Load a model.

        Args:
            model: See `loading.find_model`.
            arguments: The user's own arguments of the pipeline's call.
            device: `cuda`, `cpu` or `auto`.
            dtype: See `loading.load_pipeline`.
            scheduler: Likewise.
            variant: Likewise.
            model_config: Likewise.

        Raises:
            UsageError: something does not fit; no network has run.
        """
        place = Placement.resolve(1, device, simulate=True)
        folder = find_model(model, variant, model_config)
        arguments = recommended(model) | arguments
        folder.check_call(arguments)
        check_guided(arguments)
        pipe = load_pipeline(folder, place.device, dtype, scheduler=scheduler, variant=variant)
        pipe.set_progress_bar_config(disable=True)
        return cls(model, pipe, with_steps(pipe, arguments))

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return int(self.call["num_inference_steps"])

    def facts(self) -> dict[str, Any]:
        """What decides the images, but for the prompts; ready for JSON."""
        return {
            "model": self.model,
            "pipeline": type(self.pipe).__name__,
            "scheduler": scheduler_name(self.pipe.scheduler),
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
            "device": self.pipe.device.type,
            **self.call,
        }


def check_guided(arguments: Mapping[str, Any]) -> None:
    """Refuse a call without guidance.

    Raises:
        UsageError: names the argument.
    """
    for name in ("guidance_scale", "true_cfg_scale"):
        scale = arguments.get(name)
        if scale is not None and scale <= 1.0:
            raise UsageError(f"{name} must be above 1, got {scale:g}: without guidance there is one branch only")


def with_steps(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, with the number of steps and the guidance scale that the pipeline would take by itself.

    Args:
        pipe: The pipeline, or its class.
        arguments: What the user gave.

    Raises:
        UsageError: there are too few steps for any but full ones.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    call = {name: parameters[name].default for name in ("num_inference_steps", "guidance_scale")} | dict(arguments)
    if call["num_inference_steps"] < LEAST_STEPS:
        raise UsageError(
            f"num_inference_steps must be at least {LEAST_STEPS}, got {call['num_inference_steps']}: with fewer all "
            "are full, and there is nothing to compare"
        )
    return call


def recommended(model: str) -> dict[str, Any]:
    """Arguments with which an embedded model generates best, or a bench model has guidance; none for other models."""
    return {"guidance_scale": GUIDANCE[model]} if model in GUIDANCE else dict(GUIDED.get(model, {}))


def take_prompts(model: str, path: str | None, split: str, counts: Sequence[int]) -> list[Prompt]:
    """The prompts in a file or, without one, captions that suit an embedded model.

    Args:
        model: What the user called it.
        path: A file of prompts, see `prompts.read_prompts`.
        split: Of the captions: `calibration` or `evaluation`; no model was trained on these.
        counts: How many captions of one object, and of two.

    Raises:
        UsageError: the file cannot be read, or there is none and the model has no captions.
    """
    from ..models.tiny.scenes import captions

    if path is not None:
        return read_prompts(path)
    if model not in EMBEDDED:
        raise UsageError(f"give --prompts FILE: only {' and '.join(EMBEDDED)} bring prompts of their own")
    return [Prompt(text) for objects, count in enumerate(counts, start=1) for text in captions(split, count, objects)]


def seeded(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each with a seed: its own, or else its place in the list."""
    return [replace(p, seed=number) if p.seed is None else p for number, p in enumerate(prompts)]


def describe_prompts(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Prompts as plain data, ready for JSON."""
    return [{name: value for name, value in asdict(prompt).items() if value is not None} for prompt in prompts]
