"""Whether all ranks were called with the same thing, told before any network runs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, TypeVar

import torch

from ..errors import RankError, UsageError
from .comm import Comm

T = TypeVar("T")

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Where an object lies in a rank's memory, which differs between ranks though the object is the same."""

_CALLBACKS = ("callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
UNCOMPARED = (*_CALLBACKS, "output_type", "return_dict")
"""Arguments that may differ between ranks."""

FREEU = ("s1", "s2", "b1", "b2")
"""Attributes of blocks that FreeU (arXiv 2309.11497) sets."""


def describe_call(pipe: Any, denoisers: Sequence[Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """A short text for everything that decides what a call generates.

    Args:
        pipe: The pipeline that is called.
        denoisers: Its networks.
        arguments: Arguments of the call by name. Callbacks and the form of the output may differ between ranks.

    Returns:
        Texts by name; equal texts mean equal things (tensors, images and generators stand as digests).
    """
    call = {name: describe(value) for name, value in arguments.items() if name not in UNCOMPARED}
    return call | {
        "pipeline": type(pipe).__name__,
        "scheduler": f"{type(pipe.scheduler).__name__} {_public(pipe.scheduler.config)}",
        "denoiser": ", ".join(
            f"{type(one).__name__} {_dtype(one)} {_digest(repr(_public(one.config)).encode())}" for one in denoisers
        ),
        "FreeU": str([_freeu(one) for one in denoisers]),
        "processors of attention": "; ".join(map(_attention, denoisers)),
        "LoRA": _loras(pipe),
    }


def _dtype(network: torch.nn.Module) -> torch.dtype | None:
    """Of the first weights; the network's own property looks through all of its modules."""
    return next((weight.dtype for weight in network.parameters()), None)


def _freeu(network: Any) -> list[Any]:
    told = (vars(block).get(name) for block in getattr(network, "up_blocks", ()) for name in FREEU)
    return [value for value in told if value is not None]


def _attention(network: torch.nn.Module) -> str:
    """Which processors attention layers have in turn, and the scales of those of IP-Adapters."""
    places = (vars(module).get("processor") or module._modules.get("processor") for module in network.modules())
    told = (f"{type(one).__name__} {describe(getattr(one, 'scale', ''))}" for one in places if one is not None)
    return ", ".join(f"{len(list(run))} {name}" for name, run in groupby(told))


def _loras(pipe: Any) -> str:
    """How strongly which LoRAs act in a pipeline's networks, and some of their weights; all would take too long."""
    networks = [part for part in getattr(pipe, "components", {}).values() if hasattr(part, "peft_config")]
    layers = [layer for network in networks for layer in network.modules() if hasattr(layer, "lora_A")]
    acting = [
        (layer, name)
        for layer in layers
        for name in ([] if layer.disable_adapters else layer.active_adapters)
        if name in layer.lora_A
    ]
    fused = sum(len(layer.merged_adapters) for layer in layers)
    if not acting and not fused:
        return "none"
    scales = sorted({float(layer.scaling[name]) for layer, name in acting})
    weights = [side[name].weight.detach() for layer, name in acting for side in (layer.lora_A, layer.lora_B)]
    some = [weight.flatten()[:4].float() for weight in weights if not weight.is_meta]
    sample = describe(torch.cat(some) if some else None)
    return f"{len(acting)} layers, scales {scales}, {fused} fused, weights {sample}"


def require_same(comm: Comm, description: Mapping[str, str] | Exception, beside: T | None = None) -> list[T]:
    """Compare the descriptions of all ranks.

    Args:
        comm: The ranks.
        description: This rank's own, or the error that kept it from making one.
        beside: Something else that this rank has to say, which may differ.

    Returns:
        What all ranks say beside their descriptions.

    Raises:
        UsageError: ranks disagree, or the user made a mistake; every rank raises the same sentence.
        RankError: another rank has an error of another kind, or did not answer.
        Exception: this rank's own error of another kind, as it was.
    """
    # Errors travel as text: not every exception can be pickled, and one that cannot would leave the others waiting.
    error = description if isinstance(description, Exception) else None
    mine: _Problem | Mapping[str, str]
    if isinstance(description, Exception):
        mine = _Problem(str(description), isinstance(description, UsageError))
    else:
        mine = description
    told = comm.all_gather_object((mine, beside))
    descriptions = [theirs for theirs, _ in told]
    problems = {rank: other for rank, other in enumerate(descriptions) if isinstance(other, _Problem)}
    if not problems:
        _require_equal([other for other in descriptions if not isinstance(other, _Problem)])
        return [thing for _, thing in told]  # type: ignore[misc]
    if error is not None and not isinstance(error, UsageError):
        raise error
    shared = len(problems) == comm.size and len(set(problems.values())) == 1
    sentences = [f"rank {rank} cannot start: {problem.text}" for rank, problem in problems.items()]
    text = problems[0].text if shared else "; ".join(sentences)
    if all(problem.is_usage for problem in problems.values()):
        raise UsageError(text) from error
    raise RankError(text) from error


@dataclass(frozen=True)
class _Problem:
    """Why a rank could not describe what it was called with."""

    text: str
    is_usage: bool


def _require_equal(descriptions: list[Mapping[str, str]]) -> None:
    for name in sorted({name for other in descriptions for name in other}):
        values = [other.get(name, "nothing") for other in descriptions]
        rank = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if rank is not None:
            raise UsageError(
                f"ranks disagree on {name}: rank 0 has {_part_that_differs(values[0], values[rank])}, "
                f"rank {rank} has {_part_that_differs(values[rank], values[0])}; make the same call on every rank"
            )


def share_random_state(comm: Comm, digests: Sequence[str]) -> bool:
    """Give all ranks the leader's global random generators where theirs differ; whether they did.

    Even a call that brings its own generator may draw from them: some pipelines hand their schedulers none.

    Args:
        comm: The ranks.
        digests: Of the generators of each (`random_state_digest`).
    """
    if len(set(digests)) == 1:
        return False
    state = comm.all_gather_object(_random_state())[0]
    torch.random.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    return True


def random_state_digest() -> str:
    """A digest of this process's global random generators, which pipelines use when they are given none."""
    digest = hashlib.blake2b(digest_size=8)
    for generator in _random_state().values():
        digest.update(generator.numpy().tobytes())
    return digest.hexdigest()


def _random_state() -> dict[str, torch.Tensor]:
    """By device."""
    state = {"cpu": torch.random.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def device_identity(device: torch.device) -> str:
    """All that decides the bits that a device computes; ranks that share it compute the same."""
    software = f"torch {torch.__version__}, {torch.are_deterministic_algorithms_enabled()}"
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
        libraries = torch.version.cuda, torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return f"{card.name}, {card.total_memory}, {card.multi_processor_count}, {libraries}, {flags}, {software}"
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{device.type}, {_processor()}, {capability}, {threads} threads, {torch.__config__.show()}, {software}"


@cache
def _processor() -> str:
    """What the machine's processor is called."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.strip() for line in lines if line.startswith("model name")), platform.machine())
    return platform.processor() or platform.machine()


def describe(value: Any) -> str:
    """A short text that tells a value from others: a digest for what is large, the repr for the rest."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return f"tensor {tuple(value.shape)} {value.dtype} {_digest(flat.numpy().tobytes())}"
    if isinstance(value, torch.Generator):
        return f"generator with seed {value.initial_seed()}, state {_digest(value.get_state().numpy().tobytes())}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(describe(item) for item in value) + "]"
    if hasattr(value, "tobytes"):  # images and arrays
        return (
            f"{type(value).__name__} {getattr(value, 'shape', getattr(value, 'size', ''))} {_digest(value.tobytes())}"
        )
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return _ADDRESS.sub("", repr(value))


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers config without its private entries, such as the path it was read from."""
    return {name: config[name] for name in sorted(config) if not name.startswith("_")}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _part_that_differs(text: str, other: str, width: int = 80) -> str:
    """The stretch of a text that shows how it differs from another."""
    if len(text) <= width:
        return text
    start = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, start - width // 2)
    return ("..." if start else "") + text[start : start + width] + ("..." if start + width < len(text) else "")
