"""A pipeline's ControlNet: evaluated where the denoiser is, of the rows that a rank gives the denoiser."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from .attached import AttachedHook
from .call import bind_arguments, take_argument_rows
from .deferred import DeferredTensor, computed, mapped
from .evaluation import are_close
from .hooks import DenoiserHook
from .replay import leaves, snapshot, tensor_versions, tensors_in
from .signature import signature_of

CONTROLS = ("controlnet",)
"""Where pipelines keep the networks that tell the denoiser more at every step; several are one module there."""

_SAMPLES = ("sample", "hidden_states", "latents", "x")
"""How such networks call the argument with the noisy samples."""

InParts = Callable[[torch.nn.Module, Callable[..., Any]], Callable[..., Any]]
"""Given a network and its forward, one that makes of the output what the asking thread has to know."""


@dataclass
class ControlCall:
    """One call of a control network, evaluated when and of what rows somebody asks for its output.

    Attributes:
        forward: The network's own forward.
        arguments: Arguments by name, in containers of our own.
        rows: Samples in the call; 0 where they are not known.
        is_list: Samples come as a list.
        is_divisible: Rows can be evaluated apart.
        part: Tells which part of the picture the asking thread has, of which the forward makes the output.
    """

    forward: Callable[..., Any]
    arguments: dict[str, Any]
    rows: int
    is_list: bool
    is_divisible: bool = False
    part: Callable[[], Hashable] = lambda: None
    _versions: list[int] = field(default_factory=list)
    _evaluated: dict[tuple[int, int, Hashable], list[torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def bind(cls, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ControlCall:
        """A call as the pipeline made it."""
        arguments = snapshot(bind_arguments(forward, args, kwargs))
        samples = next((arguments[name] for name in _SAMPLES if name in arguments), None)
        has_rows = isinstance(samples, list) or (isinstance(samples, torch.Tensor) and samples.ndim > 0)
        rows = len(samples) if has_rows and samples is not None else 0
        return cls(forward, arguments, rows, isinstance(samples, list), _versions=tensor_versions(arguments))

    def run(self, rows: slice | None = None) -> Any:
        """Evaluate the network, for some of the rows or all of them; its output.

        Raises:
            RuntimeError: what the network was given has changed since.
        """
        if tensor_versions(self.arguments) != self._versions:
            raise RuntimeError("what a ControlNet was given was changed in place before the denoiser used its output")
        arguments = self.arguments
        if rows is not None and rows != slice(0, self.rows):
            arguments = take_argument_rows(arguments, self.rows, rows, self.is_list)
        return self.forward(**snapshot(computed(arguments)))

    def defer(self, form: Any) -> Any:
        """An output of that form (`form_of`), of which nothing is computed yet."""
        places = iter(range(len(list(leaves(form)))))

        def deferred(leaf: torch.Tensor | None) -> DeferredTensor | None:
            place = next(places)
            if leaf is None:
                return None
            lines, device = len(leaf) // self.rows, next(one.device for one in tensors_in(self.arguments))
            return DeferredTensor(leaf, device, lambda start, stop: self._lines(place, lines, start, stop))

        return mapped(form, deferred)

    def forget(self) -> None:
        """Free what was evaluated; what is asked for after that is evaluated again."""
        self._evaluated.clear()

    def can_be_evaluated_apart(self, output: Any) -> bool:
        """Whether some rows, evaluated apart, are what they are in the output of the whole call."""
        half = self.rows // 2
        try:
            apart = tensors_in(self.run(slice(half, self.rows)))
        except (RuntimeError, ValueError, TypeError, IndexError):  # the network insists on all rows at once
            return False
        whole = [leaf[half * (len(leaf) // self.rows) :] for leaf in tensors_in(output)]
        return [one.shape for one in apart] == [one.shape for one in whole] and all(map(are_close, apart, whole))

    def form_of(self, output: Any) -> Any:
        """The output on the meta device; None where it is more than tensors whose dim 0 is that of the rows."""
        found, tensors = list(leaves(output)), tensors_in(output)
        device = next((one.device for one in tensors_in(self.arguments)), None)
        if not tensors or len(tensors) + found.count(None) < len(found):
            return None
        if any(not one.ndim or not len(one) or len(one) % self.rows or one.device != device for one in tensors):
            return None
        return mapped(output, lambda leaf: None if leaf is None else leaf.to("meta"))

    def _lines(self, place: int, lines: int, start: int, stop: int) -> torch.Tensor:
        """Some lines of one tensor of the output, which has so many for each row of the call."""
        part = self.part()
        is_whole = (0, self.rows, part) in self._evaluated or not self.is_divisible or start % lines or stop % lines
        first, last = (0, self.rows) if is_whole else (start // lines, stop // lines)
        if (first, last, part) not in self._evaluated:
            self._evaluated[first, last, part] = list(leaves(self.run(slice(first, last))))
        return self._evaluated[first, last, part][place][start - first * lines : stop - first * lines]


class ControlNets:
    """The control networks of a pipeline, hooked: within a run their calls are answered with deferred tensors.

    The first call of each kind in a run is evaluated whole, and shows what form the output has.

    Args:
        pipe: The pipeline.
        owner: What attached it, and can `detach()` it.
        name: Of the hooks.
    """

    def __init__(self, pipe: Any, owner: Any, name: str) -> None:
        self._attached: list[AttachedHook] = []
        self._forwards: dict[int, Any] = {}
        self._hooks: list[DenoiserHook] = []
        self._forms: dict[Any, Any] = {}  # of this run, by kind of call
        self._divisible: dict[Any, bool] = {}  # by kind of call
        self._latest: ControlCall | None = None
        for network in _networks(pipe):
            hook = DenoiserHook()
            hook.owner = owner
            self._hooks.append(hook)
            self._attached.append(AttachedHook(network, hook, name))
            self._forwards[id(network)] = network.forward

    @contextlib.contextmanager
    def deferring(
        self, in_parts: InParts = lambda _, forward: forward, part: Callable[[], Hashable] = lambda: None
    ) -> Iterator[None]:
        """While this lasts, calls are deferred; nothing is held afterwards.

        Args:
            in_parts: What is called in place of a network's forward.
            part: See `ControlCall`.
        """
        self._in_parts, self._part = in_parts, part
        for attached, hook in zip(self._attached, self._hooks, strict=True):
            attached.relink()
            hook.answer = self._answer
        try:
            yield
        finally:
            for hook in self._hooks:
                hook.answer = None
            self._forget()
            self._forms.clear()

    def remove(self) -> None:
        """Restore the networks."""
        for attached in self._attached:
            attached.remove()
        self._attached, self._hooks = [], []

    def _answer(self, network: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._forget()
        # What others have wrapped around since, such as the move to the device, is there only during the call.
        if network.forward is not self._forwards[id(network)] or not signature_of(forward).is_named:
            return forward(*args, **kwargs)
        call = ControlCall.bind(self._in_parts(network, forward), args, kwargs)
        kind = id(network), _kind_of(call.arguments)
        if not call.rows or self._forms.get(kind, call) is None:
            return forward(*args, **kwargs)
        if kind not in self._forms:
            return self._learn(call, kind)
        call.is_divisible, call.part = self._divisible[kind], self._part
        self._latest = call
        return call.defer(self._forms[kind])

    def _learn(self, call: ControlCall, kind: Any) -> Any:
        """Evaluate a call whole; that its rows can be evaluated apart is checked once, not in each run."""
        output = call.run()
        self._forms[kind] = call.form_of(output)
        if self._forms[kind] is not None and kind not in self._divisible:
            self._divisible[kind] = call.rows == 1 or call.can_be_evaluated_apart(output)
        return output

    def _forget(self) -> None:
        if self._latest is not None:
            self._latest.forget()
            self._latest = None


def _networks(pipe: Any) -> list[torch.nn.Module]:
    found = (getattr(pipe, attribute, None) for attribute in CONTROLS)
    return [getattr(module, "_orig_mod", module) for module in found if isinstance(module, torch.nn.Module)]


def _kind_of(value: Any) -> Any:
    """What decides the form of an output: shapes and flags, and which numbers are 0, as some networks skip those."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, dict):
        return tuple((key, _kind_of(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_kind_of(item) for item in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return type(value), value == 0
    return value if isinstance(value, (bool, str, type(None))) else type(value)
