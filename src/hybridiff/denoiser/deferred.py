"""Tensors that are computed when somebody asks for them, and of those rows only that somebody asks for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Compute = Callable[[int, int], torch.Tensor]
"""Computes some rows of a tensor, from the first number to before the second: (rows, ...)."""

_READS_STORAGE = frozenset(
    {
        torch.Tensor.numpy,
        torch.Tensor.__array__,
        torch.Tensor.tolist,
        torch.Tensor.data_ptr,
        torch.Tensor.untyped_storage,
        torch.Tensor.__repr__,
        torch.Tensor.__reduce_ex__,
    }
)
"""What reaches for the numbers behind a tensor without an operation of PyTorch."""

_aten = torch.ops.aten
_BY_ROWS = frozenset(
    {_aten._to_copy.default, _aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.add.Tensor, _aten.sub.Tensor}
)
"""Operations that do to each number by itself what they do; of one tensor, they can be deferred like it."""


class DeferredTensor(torch.Tensor):
    """A tensor of known shape whose rows are computed on demand.

    `tensor[start:stop]` computes those rows alone. Changing the type, arithmetic with numbers and concatenation of rows
    are deferred too. Anything else computes all rows and works with them: it is always the tensor it stands for.

    Args:
        like: Shape, strides and dtype; a tensor on the meta device will do.
        device: Where it is.
        compute: Computes rows.
    """

    _compute: Compute
    _value: torch.Tensor | None

    def __new__(cls, like: torch.Tensor, device: torch.device, compute: Compute) -> DeferredTensor:
        made: DeferredTensor = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )
        made._compute, made._value = compute, None
        return made

    def whole(self) -> torch.Tensor:
        """All rows; once asked for they stay, as somebody may change them in place."""
        if self._value is None:
            self._value = self._compute(0, len(self))
        return self._value

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Some rows."""
        return self._compute(start, stop) if self._value is None else self._value[start:stop]

    def form(self) -> torch.Tensor:
        """A tensor of the same shape, strides and dtype on the meta device."""
        return torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device="meta")

    def __getitem__(self, key: Any) -> torch.Tensor:
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(len(self))
            return self.rows(start, max(start, stop))
        return self.whole()[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = copy.deepcopy(self.whole(), memo)
        return copied

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS_STORAGE:
            args, kwargs = _whole((args, kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        deferred = _defer(func, args, kwargs)
        if deferred is not None:
            return deferred
        args, kwargs = _whole((args, kwargs))
        return func(*args, **kwargs)


def computed(value: Any) -> Any:
    """An argument with real tensors in place of deferred ones, however deep in its containers."""
    return mapped(value, lambda leaf: leaf[:] if isinstance(leaf, DeferredTensor) else leaf)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A nested value with all its leaves changed, in containers of the same types; the same object if none were."""
    if isinstance(value, dict):
        items = {key: mapped(item, change) for key, item in value.items()}
        if all(items[key] is item for key, item in value.items()):
            return value
        return items if type(value) is dict else type(value)(**items)  # outputs of diffusers are such
    if isinstance(value, (list, tuple)):
        changed = [mapped(item, change) for item in value]
        is_same = all(one is other for one, other in zip(changed, value, strict=True))
        return value if is_same else type(value)(changed)
    return change(value)


def _whole(value: Any) -> Any:
    return mapped(value, lambda leaf: leaf.whole() if isinstance(leaf, DeferredTensor) else leaf)


def _defer(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The result of an operation where it need not be computed now."""
    first = args[0] if args else None
    if func is _aten.cat.default and args[1:] in ((), (0,)) and not kwargs:
        return _concatenate(args[0])
    if not isinstance(first, DeferredTensor):
        return None
    if func is _aten.zeros_like.default:
        like = torch.empty_strided(first.shape, first.stride(), dtype=first.dtype, device=first.device)
        return torch.zeros_like(like, **kwargs)
    others = [*args[1:], *kwargs.values()]
    if func not in _BY_ROWS or any(isinstance(other, torch.Tensor) for other in others):
        return None
    like = func(first.form(), *args[1:], **{name: value for name, value in kwargs.items() if name != "device"})
    device = kwargs.get("device") or first.device
    return DeferredTensor(like, device, lambda start, stop: func(first.rows(start, stop), *args[1:], **kwargs))


def _concatenate(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Tensors below each other, the rows of each computed where they are asked for."""
    if any(part.shape[1:] != parts[0].shape[1:] or part.dtype != parts[0].dtype for part in parts):
        return None

    def compute(start: int, stop: int) -> torch.Tensor:
        pieces, offset = [], 0
        for part in parts:
            first, last = max(start - offset, 0), min(stop - offset, len(part))
            if first < last:
                pieces.append(part[first:last])
            offset += len(part)
        return torch.cat(pieces or [parts[0][:0]])

    forms = [part.form() if isinstance(part, DeferredTensor) else part.to("meta") for part in parts]
    return DeferredTensor(torch.cat(forms), parts[0].device, compute)
