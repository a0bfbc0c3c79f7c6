"""What ranks agree on before anything runs: the set-up of a parallel pipeline, and each of its calls.

Every rank raises the same sentence, or none does.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch

from .arguments import MOST_PIXELS, SizeLimits, check_arguments
from .config import ParallelConfig, check_ranks
from .denoiser.adapters import DenoiserAdapter, find_denoiser
from .denoiser.decoder import decoder_gain
from .denoiser.stages import StagedDenoiser
from .distributed.comm import Comm
from .distributed.consistency import describe_call, require_same, share_random_state
from .errors import UsageError
from .schedule.presets import ModelSettings
from .strategies import STRATEGIES

_CHANGES_STEPS = {"strength", "timesteps", "sigmas", "denoising_end", "denoising_start"}
"""Arguments by which a call has another number of steps than num_inference_steps."""


@dataclass(frozen=True)
class Setup:
    """What all runs of one parallel pipeline have in common.

    Attributes:
        pipe: The stock pipeline.
        adapter: What is known of its denoiser's family.
        network: The denoiser.
        config: What the user asked for.
        settings: What holds for the model.
        comm: The ranks.
        staged: The denoiser, ready to be split, for strategies that do so.
    """

    pipe: Any
    adapter: DenoiserAdapter
    network: Any
    config: ParallelConfig
    settings: ModelSettings
    comm: Comm
    staged: StagedDenoiser | None


def agree_on_setup(pipe: Any, config: ParallelConfig, comm: Comm) -> Setup:
    """Check what this rank was given, and that the others were given the same.

    Raises:
        UsageError: the pipeline or the number of ranks does not fit, or ranks disagree.
        RankError: a rank did not answer.
    """
    description: dict[str, str] | Exception
    try:
        _check_size(config, comm)
        check_ranks(config, comm.size)
        adapter, network = find_denoiser(pipe)
        _check_pipeline(pipe)
        settings = ModelSettings.find(pipe, adapter, config.calibration)
        description = {name: repr(value) for name, value in config.to_dict().items()}
        description["settings of the model"] = settings.describe()
        staged = _staged(adapter, network, config, settings)
        if settings.may_promise(config):
            settings = replace(settings, decoder_gain=decoder_gain(pipe))
    except Exception as error:  # told to all ranks, raised by require_same
        description = error
    require_same(comm, description)
    if settings.may_promise(config):  # decoders of heterogeneous devices differ in the last bits
        settings = replace(settings, decoder_gain=comm.all_gather_object(settings.decoder_gain)[0])
    return Setup(pipe, adapter, network, config, settings, comm, staged)


def agree_on_call(setup: Setup, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, the same on every rank; nothing has run yet.

    Raises:
        UsageError: a value is bad, or ranks were called with different things.
        RankError: a rank did not answer.
    """
    description: dict[str, str] | Exception
    arguments: dict[str, Any] = {}
    try:
        arguments = _bind_call(setup.pipe, args, kwargs)
        check_arguments(arguments, _size_limits(setup))
        _check_steps(setup, arguments)
        description = describe_call(setup.pipe, setup.network, arguments)
    except Exception as error:  # told to all ranks, raised by require_same
        description = error
    require_same(setup.comm, description)
    return _with_shared_randomness(setup.comm, arguments)


def _check_steps(setup: Setup, arguments: dict[str, Any]) -> None:
    pipe, config = setup.pipe, setup.config
    parameters = inspect.signature(pipe.__call__).parameters
    steps = arguments.get("num_inference_steps", parameters["num_inference_steps"].default)
    if isinstance(steps, int) and not _CHANGES_STEPS & (arguments.keys() | ({"strength"} & parameters.keys())):
        STRATEGIES[config.strategy].check_steps(config, setup.settings, pipe.scheduler, steps)


def _with_shared_randomness(comm: Comm, arguments: dict[str, Any]) -> dict[str, Any]:
    """Where the ranks' global generators differ, give all of them the leader's, and a call without a generator one.

    The global generators of unlike devices draw other numbers: one on the CPU serves all.
    """
    if not share_random_state(comm) or arguments.get("generator") is not None:
        return arguments
    return arguments | {"generator": torch.Generator().manual_seed(int(torch.randint(2**62, ())))}


def _bind_call(pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(pipe.__call__).bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"{type(pipe).__name__} cannot be called that way: {error}") from error
    extra = next((p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    arguments = dict(bound.arguments)
    return arguments | arguments.pop(extra, {}) if extra else arguments


def _staged(
    adapter: DenoiserAdapter, network: torch.nn.Module, config: ParallelConfig, settings: ModelSettings
) -> StagedDenoiser | None:
    needed = STRATEGIES[config.strategy].needs_stages(config, settings)
    return StagedDenoiser(adapter, network) if needed else None


def _size_limits(setup: Setup) -> SizeLimits:
    """The largest image that the network takes; that sizes fit its patches, the stock pipeline says itself."""
    largest, scale = setup.adapter.largest_size(setup.network), getattr(setup.pipe, "vae_scale_factor", 1)
    return SizeLimits(largest=MOST_PIXELS if largest is None else largest * scale, model=type(setup.pipe).__name__)


def _check_size(config: ParallelConfig, comm: Comm) -> None:
    if config.devices is not None and config.devices != comm.size:
        raise UsageError(
            f"{config.devices} ranks requested, {comm.size} started; use devices={comm.size}, or start "
            f"{config.devices} (torchrun --nproc-per-node {config.devices}, --devices {config.devices})"
        )


def _check_pipeline(pipe: Any) -> None:
    """Refuse pipelines that do not batch two guidance branches, or give no sign of their steps."""
    name = type(pipe).__name__
    parameters = inspect.signature(pipe.__call__).parameters
    if not {"image_guidance_scale", "pag_scale", "editing_prompt"}.isdisjoint(parameters):
        raise UsageError(f"{name} evaluates more than two branches per step; only two are supported")
    # On the class: until the first call the properties raise AttributeError on the pipeline itself.
    if not hasattr(type(pipe), "do_classifier_free_guidance"):
        raise UsageError(f"{name} does not say whether guidance is on (do_classifier_free_guidance)")
    if "callback_on_step_end" not in parameters or not hasattr(type(pipe), "num_timesteps"):
        raise UsageError(f"{name} has no callback_on_step_end and num_timesteps, by which steps are counted")
