"""A transformer that runs patch by patch, in stages: with fresh keys and values it is the network, to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hybridiff.denoiser.blocks import Boundary
from hybridiff.denoiser.evaluation import Evaluation
from hybridiff.denoiser.stages import StagedDenoiser
from hybridiff.rivals.chain import ChainedDenoiser, Cut
from hybridiff.rivals.patches import PatchedNetwork
from support.networks import NETWORKS, adapter_of, evaluation_of
from support.oracles import differences, relative_difference

SIZES = {"sd3": (10, 14), "sd3.5": (14, 6)}


pytestmark = pytest.mark.usefixtures("without_gradients")


class Pieces:
    """A network in stages and patches."""

    def __init__(self, network: Any, stages: int) -> None:
        layers = StagedDenoiser(adapter_of(network), network).layers
        self.patched = PatchedNetwork(network, layers)
        self.chained = ChainedDenoiser(network, layers, Cut.chain([1] * len(layers), stages, {}))

    def run_whole(self, evaluation: Evaluation) -> torch.Tensor:
        return self.chained.run_whole(self.patched.patch(evaluation))[0]

    def run(self, evaluation: Evaluation, patches: int) -> torch.Tensor | None:
        """A step, patch after patch through all stages."""
        prediction, texts = None, dict[int, torch.Tensor]()
        for patch in range(patches):
            given: dict[int, Boundary] = {}
            for stage in range(self.chained.cut.stages):
                running = self.patched.patch(evaluation, patch, patches)
                prediction, made = self.chained.run_stage(stage, running, given)
                for layer, (text, image) in made.items():
                    given = dict.fromkeys(range(layer + 1), (texts.setdefault(layer, text), image))
        return prediction

    def remove(self) -> None:
        self.chained.remove()
        self.patched.remove()


@pytest.mark.parametrize("extras", [True, False], ids=["two images and a ControlNet", "one image"])
@pytest.mark.parametrize("name", SIZES)
def test_patches_with_fresh_keys_and_values_are_the_network(name: str, extras: bool) -> None:
    network = NETWORKS[name]()
    before = forwards_of(network)
    evaluation = evaluation_of(network, 4 if extras else 2, *SIZES[name], extras=extras)
    expected = evaluation.run()
    for stages in (1, 2, 4):
        pieces = Pieces(network, stages)
        assert torch.equal(pieces.run_whole(evaluation), expected)
        for patches in (1, 2, 3, 21):
            prediction = pieces.run(evaluation, patches)
            assert prediction is not None
            assert (
                torch.equal(prediction, expected) if patches == 1 else relative_difference(prediction, expected) < 1e-5
            )
        pieces.remove()
    assert torch.equal(evaluation.run(), expected)
    assert differences(before, forwards_of(network)) == []


def forwards_of(network: Any) -> dict[str, Any]:
    """What hooks replace."""
    return {name: vars(module).get("forward") for name, module in network.named_modules()}


@pytest.mark.parametrize("name", SIZES)
def test_later_patches_are_those_of_the_step_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, in two steps after a whole one, each at a sample of its own."""
    network, patches, stages = NETWORKS[name](), 3, 2
    steps = [evaluation_of(network, 2, *SIZES[name]) for _ in range(3)]
    for number, step in enumerate(steps):
        step.sample.mul_(0.8**number)
    pieces = Pieces(network, stages)
    pieces.run_whole(steps[0])
    made = [pieces.run(step, patches) for step in steps[1:]]
    begins = [pieces.chained.cut.layers_of(stage)[0] for stage in range(stages)]
    pieces.remove()
    by_hand = ByHand(network, begins, monkeypatch)
    by_hand.run(steps[0], 1)
    for step, prediction in zip(steps[1:], made, strict=True):
        assert prediction is not None
        assert relative_difference(prediction, by_hand.run(step, patches)) < 1e-6
        assert relative_difference(prediction, step.run()) > 1e-4


class ByHand:
    """The blocks one after the other, and attention that remembers the picture's keys and values of each call."""

    def __init__(self, network: Any, begins: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self._network, self._begins, self._attend = network, begins, F.scaled_dot_product_attention
        self._kept: dict[int, list[torch.Tensor]] = {}
        self._place, self._tokens = -1, range(0)
        self._monkeypatch = monkeypatch

    def run(self, step: Evaluation, patches: int) -> torch.Tensor:
        given, network = step.calls[0].arguments, self._network
        picture = network.pos_embed(given["hidden_states"])
        condition = network.time_text_embed(given["timestep"], given["pooled_projections"])
        texts = {0: network.context_embedder(given["encoder_hidden_states"])}
        outputs = []
        with self._monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", self._remembering)
            for tokens in torch.arange(picture.shape[1]).tensor_split(patches):
                self._place, self._tokens = 0, range(int(tokens[0]), int(tokens[-1]) + 1)
                text, image = texts[0], picture[:, tokens]
                for index, block in enumerate(network.transformer_blocks):
                    text = texts.setdefault(index, text) if index in self._begins else text
                    text, image = block(hidden_states=image, encoder_hidden_states=text, temb=condition)
                outputs.append(network.proj_out(network.norm_out(image, condition)))
        height, width = (size // 2 for size in given["hidden_states"].shape[-2:])
        squares = torch.cat(outputs, 1).unflatten(1, (height, width)).unflatten(-1, (2, 2, -1))
        return squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _remembering(self, query: Any, key: Any, value: Any, **options: Any) -> torch.Tensor:
        own, both = len(self._tokens), [key, value]
        kept = self._kept.setdefault(self._place, [tensor[:, :, :own].clone() for tensor in both])
        self._place += 1
        for tensor, memory in zip(both, kept, strict=True):
            memory[:, :, self._tokens.start : self._tokens.stop] = tensor[:, :, :own]
        keys, values = (torch.cat((memory, tensor[:, :, own:]), 2) for memory, tensor in zip(kept, both, strict=True))
        return self._attend(query, keys, values, **options)
