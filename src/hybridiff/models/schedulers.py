"""Schedulers by name, built from the pipeline's own one so that its noise schedule and prediction type are kept.

As far as their class knows them; where it does not, a warning says so.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..utils.names import require_known

logger = logging.getLogger("hybridiff")


_OF_SOLVER = (
    *("algorithm_type", "solver_order", "solver_type", "stochastic_sampling"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
)
"""Settings of a scheduler that make it another one, whatever the model."""


@dataclass(frozen=True)
class _Choice:
    """A scheduler class of diffusers, for models of one kind, with what sets it apart from the class's defaults."""

    class_name: str
    kind: str
    changes: dict[str, Any] = field(default_factory=dict)


_ZERO_SNR = "rescale_betas_zero_snr"

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

# clip_sample: latents are not pixels and must not be clipped, but configs of other classes do not say so.
SCHEDULERS: dict[str, _Choice] = {
    "ddim": _Choice("DDIMScheduler", "diffusion", {"clip_sample": False}),
    "ddpm": _Choice("DDPMScheduler", "diffusion", {"clip_sample": False}),
    "dpmsolver++": _Choice("DPMSolverMultistepScheduler", "diffusion", {"algorithm_type": "dpmsolver++"}),
    "dpmsolver++-sde": _Choice("DPMSolverMultistepScheduler", "diffusion", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": _Choice("EulerDiscreteScheduler", "diffusion"),
    "euler-ancestral": _Choice("EulerAncestralDiscreteScheduler", "diffusion"),
    "heun": _Choice("HeunDiscreteScheduler", "diffusion", {"clip_sample": False}),
    "unipc": _Choice("UniPCMultistepScheduler", "diffusion"),
    "flow-euler": _Choice("FlowMatchEulerDiscreteScheduler", "flow"),
    "flow-heun": _Choice("FlowMatchHeunDiscreteScheduler", "flow"),
    "flow-dpmsolver++": _Choice("DPMSolverMultistepScheduler", "flow", {**_FLOW, "algorithm_type": "dpmsolver++"}),
    "flow-unipc": _Choice("UniPCMultistepScheduler", "flow", _FLOW),
}


def scheduler_name(scheduler: Any) -> str:
    """A scheduler's class, and in brackets those settings of its solver that are not the class's defaults."""
    defaults = inspect.signature(type(scheduler).__init__).parameters
    config = {name: scheduler.config[name] for name in _OF_SOLVER if name in defaults}
    changed = [f"{name}={value}" for name, value in config.items() if value != defaults[name].default]
    return type(scheduler).__name__ + (f" ({', '.join(changed)})" if changed else "")


def scheduler_kind(config: Mapping[str, Any]) -> str:
    """`flow` or `diffusion`: what a scheduler's config (with its `_class_name`) says the model was trained for."""
    flow = (
        str(config.get("_class_name", "")).startswith("FlowMatch")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )
    return "flow" if flow else "diffusion"


def check_scheduler(name: str, own: Mapping[str, Any]) -> None:
    """Refuse an unknown scheduler, or one for another kind of model than the config `own` is for.

    Raises:
        UsageError: with the names that would do.
    """
    require_known("scheduler", name, SCHEDULERS)
    kind = scheduler_kind(own)
    if SCHEDULERS[name].kind != kind:
        fitting = ", ".join(other for other, choice in SCHEDULERS.items() if choice.kind == kind)
        words = {"flow": "flow-matching", "diffusion": "diffusion"}
        raise UsageError(
            f"scheduler {name!r} is for {words[SCHEDULERS[name].kind]} models, this is a {words[kind]} model; "
            f"choose one of {fitting}"
        )


def build_scheduler(name: str, own: Any) -> Any:
    """The scheduler called `name`, with the configuration of the pipeline's `own` scheduler.

    Raises:
        UsageError: see `check_scheduler`.
    """
    import diffusers

    config = dict(own.config)
    check_scheduler(name, {"_class_name": type(own).__name__, **config})
    choice = SCHEDULERS[name]
    if choice.kind == "flow":  # one thing, which classes call by two names
        config["shift"] = config["flow_shift"] = config.get("shift", config.get("flow_shift", 1.0))
    kind = getattr(diffusers, choice.class_name)
    if config.get(_ZERO_SNR) and _ZERO_SNR not in inspect.signature(kind.__init__).parameters:
        logger.warning("%s has no %s, which the model was trained with: its images differ", kind.__name__, _ZERO_SNR)
    return kind.from_config(config, **choice.changes)


@contextlib.contextmanager
def exchanged_scheduler(pipe: Any, name: str | None) -> Iterator[None]:
    """A pipeline with the scheduler called `name` in the place of its own, which comes back; None leaves it alone.

    Raises:
        UsageError: see `check_scheduler`.
    """
    own = pipe.scheduler
    if name is not None:
        pipe.scheduler = build_scheduler(name, own)
    try:
        yield
    finally:
        pipe.scheduler = own
