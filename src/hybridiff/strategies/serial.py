"""The stock pipeline: every rank evaluates everything."""

from __future__ import annotations

from ..denoiser.call import Evaluation
from ..numerics.guidance import discrepancy
from .base import Answer, Strategy


class SerialStrategy(Strategy):
    """Evaluate the whole batch as the stock pipeline does, and record the discrepancy."""

    name = "serial"

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        if not self.channel.is_open:
            self.channel.open(0, evaluation.sample)
        prediction = evaluation.run()  # (2B, C, H, W), or (B, C, H, W) without guidance
        if evaluation.branches == 1:
            self.channel.beat()
            return Answer(prediction, None)
        unconditional, conditional = prediction.chunk(2)
        self.channel.gather({})  # nothing to send but how the ranks fare
        (measured,) = self.channel.settle(discrepancy(unconditional, conditional).reshape(1))
        return Answer(prediction, measured)
