"""What the VAE's and the denoisers' training share: clock, progress lines, learning rate, averages, checkpoints."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


def rate(fraction: float, peak: float, warm: float = 0.01) -> float:
    """The learning rate after a fraction 0..1 of the planned time: linear warm-up, then half a cosine to 1 %."""
    if fraction < warm:
        return peak * max(fraction, 1e-3) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (fraction - warm) / (1 - warm)))))


def set_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


class Clock:
    """Counts training time over all runs, because the schedule is a function of the minutes that were planned."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.planned, self.spent, self._last = minutes * 60, spent, time.monotonic()

    def tick(self) -> None:
        now = time.monotonic()
        self.spent, self._last = self.spent + now - self._last, now

    @property
    def fraction(self) -> float:
        return min(1.0, self.spent / self.planned)


class Progress:
    """A bar on a terminal, a line every half minute elsewhere."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name, self._printed = clock, name, time.monotonic()
        self.bar = tqdm(total=round(clock.planned), unit="s", desc=name, disable=not sys.stderr.isatty())

    def show(self, text: str) -> None:
        self.bar.n = min(round(self.clock.spent), self.bar.total)
        self.bar.set_postfix_str(text)
        if self.bar.disable and time.monotonic() - self._printed > 30:
            self._printed = time.monotonic()
            print(f"{self.name} {self.clock.spent / 60:.1f} of {self.clock.planned / 60:.0f} min: {text}", flush=True)


class Average:
    """Exponential moving average of parameters, quick to follow at the start."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.step = list(parameters), decay, 0
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.step += 1
        weight = 1 - min(self.decay, self.step / (self.step + 20))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], weight)


class Checkpoint:
    """A file that a training is saved to from time to time, and at its end."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self._saved = path, seconds, time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """What was saved; None where nothing was."""
        return torch.load(self.path, weights_only=False) if self.path.exists() else None

    def is_due(self, clock: Clock) -> bool:
        return time.monotonic() - self._saved > self.seconds or clock.fraction >= 1

    def save(self, state: dict[str, Any]) -> None:
        save(state, self.path)
        self._saved = time.monotonic()


def save(state: dict[str, Any], path: Path) -> None:
    """Write a file so that a kill in the middle leaves the one before it."""
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
