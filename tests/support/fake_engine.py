"""A stand-in for the Engine that commands start: it answers at once, and remembers what it was asked."""

from __future__ import annotations

from typing import Any, Self

import pytest

from hybridiff import ParallelConfig
from hybridiff.launch.protocol import Generation


class FakeEngine:
    """Says what `answer` says, as a test has it.

    Attributes:
        made: All engines that were made, by the options they got.
        asked: The calls that were to be timed, with the engine; those that keep a core busy are left out.
    """

    made: list[tuple[Self, dict[str, Any]]]
    asked: list[tuple[Self, dict[str, Any]]]

    def __init__(self, model: Any, devices: int, config: ParallelConfig, **options: Any) -> None:
        self.model, self.devices, self.config = str(getattr(model, "name", model)), devices, config
        self.made.append((self, options))

    @classmethod
    def take_place(cls, monkeypatch: pytest.MonkeyPatch) -> type[Self]:
        """Let commands start this one from now on; nothing is remembered from before."""
        fresh = type("FreshFakeEngine", (cls,), {"made": [], "asked": []})
        monkeypatch.setattr("hybridiff.launch.engine.Engine", fresh)
        return fresh

    def generate(self, prompt: str, *, seed: int | None = None, on_step: Any = None, **call: Any) -> Generation:
        if on_step is not None:  # it keeps a core busy
            on_step(1, call["num_inference_steps"])
        else:
            self.asked.append((self, call))
        return self.answer(seed or 0, call)

    def answer(self, seed: int, call: dict[str, Any]) -> Generation:
        raise NotImplementedError

    def drain(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
