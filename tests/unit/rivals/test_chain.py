"""Stages of a cut network: with outputs of the same step they are the whole network, bit for bit."""

from __future__ import annotations

import pytest
import torch

from hybridiff.denoiser.stages import StagedDenoiser
from hybridiff.rivals.chain import ChainedDenoiser, Cut, Outputs
from support.networks import NETWORKS, adapter_of, evaluation_of
from support.oracles import differences

SIZES = {"sdxl": (13, 10), "sd1.x": (11, 13), "sd2.x": (13, 14), "sd3": (10, 14), "sd3.5": (14, 6)}


pytestmark = pytest.mark.usefixtures("without_gradients")


def cuts_of(name: str) -> list[Cut]:
    """Chains of some lengths and every nested cut, of a network whose layers cost the same."""
    network = NETWORKS[name]()
    adapter = adapter_of(network)
    layers, skips = len(adapter.layers(network)), adapter.skips(network)
    chains = [Cut.chain([1] * layers, stages, skips) for stages in range(2, min(layers, 7) + 1)]
    nested = [Cut.nested(layers, point.entry, point.exit, skips) for point in adapter.split_points(network)]
    return [*chains, *nested[:: max(1, len(nested) // 5)]]


@pytest.mark.parametrize("extras", [True, False], ids=["two images and a ControlNet", "one image"])
@pytest.mark.parametrize("name", NETWORKS)
def test_stages_in_turn_are_the_whole_network(name: str, extras: bool) -> None:
    """As often as there are stages: in a nested cut the last one begins what the first one goes on with."""
    network = NETWORKS[name]()
    layers = StagedDenoiser(adapter_of(network), network).layers
    evaluation = evaluation_of(network, 4 if extras else 2, *SIZES[name], extras=extras)
    expected = evaluation.run()
    other = evaluation_of(network, 4 if extras else 2, *SIZES[name], extras=extras)
    other.sample.mul_(0.5)
    for cut in cuts_of(name):
        chained = ChainedDenoiser(network, layers, cut)
        made: Outputs = chained.run_whole(other)[1]  # of another step: nothing of it may be left
        for _ in range(2):
            predictions = []
            for stage in range(cut.stages):
                given = {layer: made[layer] for layer in cut.needs(stage)}
                prediction, outputs = chained.run_stage(stage, evaluation, given)
                made |= outputs
                predictions.append(prediction)
        assert predictions[:-1] == [None] * (cut.stages - 1)
        assert torch.equal(predictions[-1], expected), cut
        assert torch.equal(chained.run_whole(evaluation)[0], expected)
        assert torch.equal(evaluation.run(), expected)
        chained.remove()


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_stages_at_once_converge_to_the_whole_network(name: str) -> None:
    """All on what the others made before: with everything else as it is, exact once each stage has had its turn."""
    network = NETWORKS[name]()
    layers = StagedDenoiser(adapter_of(network), network).layers
    evaluation, other = (evaluation_of(network, 2, *SIZES[name]) for _ in range(2))
    other.sample.mul_(0.5)
    expected = evaluation.run()
    for cut in cuts_of(name):
        chained = ChainedDenoiser(network, layers, cut)
        made = chained.run_whole(other)[1]
        for _ in range(cut.stages + 1):
            results = [chained.run_stage(stage, evaluation, made) for stage in range(cut.stages)]
            made = {layer: outputs for _, own in results for layer, outputs in own.items()}
        assert torch.equal(results[-1][0], expected), cut
        chained.remove()


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_chain_is_taken_off_without_rests(name: str) -> None:
    network = NETWORKS[name]()

    def state() -> dict[str, object]:
        return {f"{path}.{key}": value for path, part in network.named_modules() for key, value in vars(part).items()}

    before = state()
    staged = StagedDenoiser(adapter_of(network), network)
    chained = ChainedDenoiser(network, staged.layers, cuts_of(name)[0])
    assert differences(before, state())
    chained.remove()
    assert differences(before, state()) == []


def test_the_largest_stage_is_as_small_as_can_be() -> None:
    assert Cut.chain([5, 1, 1, 1, 4], 2, {}).owners in ((0, 0, 1, 1, 1), (0, 1, 1, 1, 1))
    assert Cut.chain([1, 1, 1, 9], 2, {}).owners == (0, 0, 0, 1)
    assert Cut.chain([9, 1, 1, 1], 3, {}).owners in ((0, 1, 1, 2), (0, 1, 2, 2))
    assert Cut.chain([1, 2, 3], 3, {}).owners == (0, 1, 2)


def test_what_a_stage_is_given_are_the_layer_before_and_skips_from_other_stages() -> None:
    cut = Cut((0, 0, 1, 1, 2, 2), {3: 1, 5: 0, 4: 2})
    assert [cut.needs(stage) for stage in range(3)] == [[], [1], [0, 2, 3]]
    nested = Cut.nested(6, 1, 3, {3: 2, 4: 1})
    assert nested.owners == (1, 1, 0, 0, 1, 1)
    assert [nested.needs(stage) for stage in range(2)] == [[1], [3]]
    assert Cut.nested(3, 0, 2, {}).needs(1) == [2]
