"""What ranks agree on before anything runs: the set-up of a parallel pipeline, and each of its calls.

Every rank raises the same sentence, or none does.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .arguments import MOST_PIXELS, SizeLimits, check_arguments
from .config import ParallelConfig, check_ranks
from .denoiser.adapters import ADAPTERS, DenoiserAdapter, find_denoisers
from .denoiser.attached import hooks_of
from .denoiser.compiled import how_compiled
from .denoiser.control import CONTROLS
from .denoiser.decoder import decoder_gain
from .denoiser.stages import StagedDenoiser
from .distributed.comm import Comm
from .distributed.consistency import describe_call, random_state_digest, require_same, share_random_state
from .errors import UsageError
from .schedule.presets import ModelSettings
from .sharding.encoders import SharedEncoders
from .sharding.network import why_not_by_rows
from .sharding.ranks import RankGroups
from .sharding.vae import SharedVae
from .strategies.offered import find_strategy

_CHANGES_STEPS = {"strength", "timesteps", "sigmas", "denoising_end", "denoising_start"}
"""Arguments by which a call has another number of steps than num_inference_steps."""

_FURTHER_BRANCHES = frozenset({"image_guidance_scale", "pag_scale", "sag_scale", "editing_prompt"})
"""Arguments of pipelines that evaluate more than two branches."""


@dataclass(frozen=True)
class Setup:
    """What all runs of one parallel pipeline have in common.

    Attributes:
        pipe: The stock pipeline.
        adapter: What is known of its denoiser's family.
        networks: The denoiser, or all that the pipeline goes over to within a generation.
        is_known: How the pipeline does guidance is known (`is_known`).
        strategy: The name of the one that the user asked for.
        config: What the user asked for, as that strategy has adapted it.
        settings: What holds for the model.
        comm: The ranks.
        staged: The denoiser, ready to be split, for strategies that do so.
        groups: The ranks as groups that share rows.
        vae: The pipeline's VAE, which ranks may share.
        encoders: Its encoders of text and images, which the leader may evaluate for all.
    """

    pipe: Any
    adapter: DenoiserAdapter
    networks: tuple[Any, ...]
    is_known: bool
    strategy: str
    config: ParallelConfig
    settings: ModelSettings
    comm: Comm
    staged: StagedDenoiser | None
    groups: RankGroups
    vae: SharedVae
    encoders: SharedEncoders

    @property
    def is_split(self) -> bool:
        """Whether a run may have hooks on layers of the network."""
        return self.staged is not None or find_strategy(self.config.strategy).hooks_layers


def agree_on_setup(pipe: Any, config: ParallelConfig, comm: Comm) -> Setup:
    """Check what this rank was given, and that the others were given the same.

    Raises:
        UsageError: the pipeline or the number of ranks does not fit, or ranks disagree.
        RankError: a rank did not answer.
    """
    description: dict[str, str] | Exception
    name = config.strategy
    try:
        _check_size(config, comm)
        check_ranks(config, comm.size)
        find_strategy(name).check_ranks(config, comm.size)
        adapter, networks = find_denoisers(pipe)
        _check_pipeline(pipe)
        settings = ModelSettings.find(pipe, adapter, config.calibration)
        description = {field: repr(value) for field, value in config.to_dict().items()}
        description["settings of the model"] = settings.describe()
        config = find_strategy(name).adapt(config, comm.size)
        _check_compiled(pipe, networks, name, config, comm)
        staged = _staged(pipe, adapter, networks[0], config, settings)
        if settings.may_promise(config):
            settings = replace(settings, decoder_gain=decoder_gain(pipe))
    except Exception as error:  # told to all ranks, raised by require_same
        description = error
    require_same(comm, description)
    if settings.may_promise(config):  # decoders of heterogeneous devices differ in the last bits
        settings = replace(settings, decoder_gain=comm.all_gather_object(settings.decoder_gain)[0])
    warm_up = config.displaced_warm_up if config.displaced else None
    cuts = staged is None or find_strategy(config.strategy).cuts_stages
    groups = RankGroups(comm, config.shards if cuts else 1, warm_up, config.trace and not config.displaced)
    shares_pictures, drops = config.strategy != "serial" and config.shards != 1, not returns_output(config, comm)
    vae, encoders = SharedVae(pipe, comm, groups, shares_pictures, drops), SharedEncoders.agree(pipe, comm)
    return Setup(
        pipe, adapter, networks, is_known(pipe, adapter), name, config, settings, comm, staged, groups, vae, encoders
    )


def returns_output(config: ParallelConfig, comm: Comm) -> bool:
    """Whether this rank hands back what it makes."""
    return config.outputs == "all" or comm.is_leader


def agree_on_call(setup: Setup, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, the same on every rank; nothing has run yet.

    Raises:
        UsageError: a value is bad, or ranks were called with different things.
        RankError: a rank did not answer.
    """
    description: dict[str, str] | Exception
    arguments: dict[str, Any] = {}
    mine: Any = None
    controls = (getattr(setup.pipe, name, None) for name in CONTROLS)
    shared = [*setup.networks, *(control for control in controls if isinstance(control, torch.nn.Module))]
    try:
        arguments = _bind_call(setup.pipe, args, kwargs)
        check_arguments(arguments, _size_limits(setup))
        _check_networks(setup)
        _check_steps(setup, arguments)
        compiled = _check_compiled(setup.pipe, setup.networks, setup.strategy, setup.config, setup.comm)
        _unhook(setup, compiled)
        description = describe_call(setup.pipe, setup.networks, arguments) | {"torch.compile": compiled}
        pictures = setup.vae.is_known(), arguments.get("output_type") == "latent"
        mine = pictures, random_state_digest(), setup.groups.made, [why_not_by_rows(one) for one in shared]
    except Exception as error:  # told to all ranks, raised by require_same
        description = error
    known, digests, made, why_whole = zip(*require_same(setup.comm, description, mine), strict=True)
    setup.vae.is_shared = known[0][0] and len(set(known)) == 1  # all ranks decode, or none
    setup.groups.begin(made)
    setup.groups.networks.agree(shared, why_whole)
    return _with_shared_randomness(setup.comm, digests, arguments)


def _check_networks(setup: Setup) -> None:
    """Refuse other denoisers than those that are hooked, and such as keep a state from call to call."""
    if [*map(id, find_denoisers(setup.pipe)[1])] != [*map(id, setup.networks)]:
        raise UsageError(
            f"{type(setup.pipe).__name__} has another denoiser than when it became parallel; detach() it before, and "
            "have it parallel again"
        )
    for network in setup.networks:
        hooks = (hook for module in network.modules() for hook in hooks_of(module).values())
        cache = next((hook for hook in hooks if hook._is_stateful), None)
        if cache is not None:
            raise UsageError(
                f"{type(network).__name__} has a cache ({type(cache).__name__}), which would mix what it keeps of "
                "branches and rows; take it off (disable_cache), strategy 'hybrid' has cached steps of its own"
            )


def _check_compiled(pipe: Any, networks: tuple[Any, ...], strategy: str, config: ParallelConfig, comm: Comm) -> str:
    """How the network is compiled; refuses what needs hooks within a graph."""
    compiled, shares = how_compiled(pipe, networks), config.shards not in (None, 1) and comm.size > 1
    if compiled == "whole" and shares:
        why = " as a whole, so its attention cannot be shared between ranks", "compile='blocks', or 'cfg' with shards=1"
    elif compiled != "none" and find_strategy(config.strategy).hooks_attention:
        why = ", so its attention cannot be cut into patches", "'cfg', or do without torch.compile"
    else:
        return compiled
    raise UsageError(f"{type(networks[0]).__name__} is compiled{why[0]} (strategy {strategy!r}); use {why[1]}")


def _unhook(setup: Setup, compiled: str) -> None:
    """Take off what an earlier call left on networks of which modules have been compiled, or changed, since."""
    is_unhooked = setup.groups.networks.unhook(compiled == "whole")
    if setup.staged is not None and (is_unhooked or compiled != "none"):
        setup.staged.relink()
        if is_unhooked:
            setup.staged.remove()  # its hooks lie around those, and come after them


def _check_steps(setup: Setup, arguments: dict[str, Any]) -> None:
    pipe, config = setup.pipe, setup.config
    parameters = inspect.signature(pipe.__call__).parameters
    default = getattr(parameters.get("num_inference_steps"), "default", None)
    steps = arguments.get("num_inference_steps", default)
    if isinstance(steps, int) and not _CHANGES_STEPS & (arguments.keys() | ({"strength"} & parameters.keys())):
        find_strategy(config.strategy).check_steps(config, setup.settings, pipe.scheduler, steps)


def _with_shared_randomness(comm: Comm, digests: Sequence[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """Where the ranks' global generators differ, give all of them the leader's, and a call without a generator one.

    The global generators of unlike devices draw other numbers: one on the CPU serves all.
    """
    if not share_random_state(comm, digests) or arguments.get("generator") is not None:
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
    pipe: Any, adapter: DenoiserAdapter, network: torch.nn.Module, config: ParallelConfig, settings: ModelSettings
) -> StagedDenoiser | None:
    if not find_strategy(config.strategy).needs_stages(config, settings):
        return None
    staged = StagedDenoiser(adapter, network)
    if not is_known(pipe, adapter):
        raise UsageError(
            f"how {type(pipe).__name__} does guidance is found out at its first step, so its network cannot be split; "
            "use strategy 'hybrid' with cached steps, or 'cfg'"
        )
    return staged


def _size_limits(setup: Setup) -> SizeLimits:
    """The largest image that the network takes; that sizes fit its patches, the stock pipeline says itself."""
    largest, scale = setup.adapter.largest_size(setup.networks[0]), getattr(setup.pipe, "vae_scale_factor", 1)
    return SizeLimits(largest=MOST_PIXELS if largest is None else largest * scale, model=type(setup.pipe).__name__)


def _check_size(config: ParallelConfig, comm: Comm) -> None:
    if config.devices is not None and config.devices != comm.size:
        raise UsageError(
            f"{config.devices} ranks requested, {comm.size} started; use devices={comm.size}, or start "
            f"{config.devices} (torchrun --nproc-per-node {config.devices}, --devices {config.devices})"
        )


def is_known(pipe: Any, adapter: DenoiserAdapter) -> bool:
    """Whether a pipeline stacks two guidance branches in a call, the unconditional one first, and counts its steps.

    So do all those of the families whose layers are known that say whether guidance is on and have no further scale;
    how others do guidance is found out at their first step.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    # On the class: until the first call the properties raise AttributeError on the pipeline itself.
    says = all(hasattr(type(pipe), name) for name in ("do_classifier_free_guidance", "num_timesteps"))
    counts = says and "callback_on_step_end" in parameters
    return adapter in ADAPTERS and counts and _FURTHER_BRANCHES.isdisjoint(parameters)


def _check_pipeline(pipe: Any) -> None:
    """Refuse what has no scheduler, whose steps tell when a step of the pipeline ends."""
    if not callable(getattr(getattr(pipe, "scheduler", None), "step", None)):
        raise UsageError(f"{type(pipe).__name__} has no scheduler, by whose steps its own are counted")
