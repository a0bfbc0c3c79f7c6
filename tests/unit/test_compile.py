"""Every strategy with a compiled denoiser: the images of the same strategy uncompiled, few graphs, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, ParallelPipeline, UsageError, load_pipeline, parallelize
from hybridiff.denoiser.compiled import how_compiled
from hybridiff.denoiser.through import expose
from hybridiff.models.compiling import check_compile, compile_denoisers
from hybridiff.models.tiny import GUIDANCE
from support.compiled import Graphs, compile_blocks, compile_whole
from support.pipelines import build, denoiser_of

REUSE: dict[str, Any] = {"strategy": "hybrid", "full_steps": "0-1,3,5", "step_kind": "reuse"}
STRIDE: dict[str, Any] = {"strategy": "asyncdiff", "devices": 3, "settings": {"stride": 2}}
TAYLOR: dict[str, Any] = {"strategy": "cached_cfg", "settings": {"cache": "taylorseer"}}

WHOLE_TOO: dict[str, dict[str, Any]] = {
    "serial": {"strategy": "serial", "devices": 1},
    "cfg": {"strategy": "cfg"},
    "hybrid, cached": {"strategy": "hybrid", "full_steps": "0-1,3,5"},
    "hybrid, a promise": {"strategy": "hybrid", "fidelity": 30.0},
    "parastep": {"strategy": "parastep"},
}
BY_LAYERS: dict[str, dict[str, Any]] = {
    "hybrid, reuse": REUSE,
    "published": {"strategy": "published"},
    "asyncdiff": {"strategy": "asyncdiff"},
    "asyncdiff, stride 2": STRIDE,
    "cached_cfg": {"strategy": "cached_cfg"},
    "cached_cfg, taylorseer": TAYLOR,
}
SHARED: dict[str, dict[str, Any]] = {
    "shards": {"strategy": "cfg", "shards": 2},
    "branches of two shards": {"strategy": "cfg", "shards": 2, "devices": 4},
    "three": {"strategy": "cfg", "shards": 3, "devices": 3},
    "cached steps": {"strategy": "hybrid", "full_steps": "0-1,3,5", "shards": 2},
    "reuse steps": REUSE | {"shards": 2, "devices": 4},
    "displaced": {"strategy": "cfg", "shards": 2, "displaced": True},
}
BY_BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{name}, {kind}": (name, SHARED[kind]) for name in ("sd3", "sdxl two levels") for kind in SHARED},
    "sd3.5": ("sd3.5", SHARED["three"]),  # attends twice in a block
    "sequence": ("sd3", {"strategy": "sequence"}),
    "distrifusion": ("sdxl two levels", {"strategy": "distrifusion"}),
}
PATCHES: dict[str, Any] = {"strategy": "pipefusion"}


def attach(pipe: Any, config: dict[str, Any]) -> ParallelPipeline:
    return parallelize(pipe, ParallelConfig(**{"devices": 2, "simulate": True, **config}))


def generate(parallel: Any) -> torch.Tensor:
    tokens = {"max_sequence_length": 16} if hasattr(parallel.pipe, "transformer") else {}
    call = {"num_inference_steps": 6, "guidance_scale": 5.0, "output_type": "latent", **tokens}
    latents: torch.Tensor = parallel("a ring", generator=torch.Generator().manual_seed(0), **call).images
    return latents


def uncompiled(name: str, config: dict[str, Any]) -> torch.Tensor:
    with attach(build(name), config) as parallel:
        return generate(parallel)


@pytest.fixture(autouse=True)
def _forget_graphs() -> None:
    torch.compiler.reset()


def check_graphs(name: str, config: dict[str, Any], compile: Callable[[Any, Graphs], None]) -> None:
    """The same images twice, by whole graphs that the first generation has made."""
    pipe, graphs, expected = build(name), Graphs(), uncompiled(name, config)
    compile(pipe, graphs)
    with attach(pipe, config) as parallel:
        assert torch.equal(generate(parallel), expected)
        made, runs = graphs.made, graphs.runs
        assert torch.equal(generate(parallel), expected)
        assert parallel.report is not None
        assert not any("compiled" in note for note in parallel.report.notes)
    assert graphs.made == made
    assert 0 < made <= 4
    assert graphs.runs - runs >= 6 - parallel.report.kinds.get("cached", 0)
    assert how_compiled(pipe, (denoiser_of(pipe),)) == ("whole" if compile is compile_whole else "blocks")


@pytest.mark.parametrize("config", WHOLE_TOO.values(), ids=WHOLE_TOO)
@pytest.mark.parametrize("compile", [compile_whole, compile_blocks], ids=["whole", "blocks"])
def test_whole_rows_run_compiled(compile: Callable[[Any, Graphs], None], config: dict[str, Any]) -> None:
    check_graphs("sd3", config, compile)


@pytest.mark.parametrize("config", BY_LAYERS.values(), ids=BY_LAYERS)
@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_layers_that_run_apart_run_compiled_blocks(name: str, config: dict[str, Any]) -> None:
    if name == "sdxl" and config == BY_LAYERS["cached_cfg"]:
        pytest.skip("first_block is for transformers")
    check_graphs(name, config, compile_blocks)


@pytest.mark.parametrize(
    "config",
    [REUSE, {"strategy": "published"}, {"strategy": "cached_cfg"}, STRIDE, SHARED["shards"], SHARED["reuse steps"]],
)
def test_blocks_may_be_replaced_by_compiled_ones(config: dict[str, Any]) -> None:
    pipe, graphs, expected = build("sd3"), Graphs(), uncompiled("sd3", config)
    blocks = pipe.transformer.transformer_blocks
    for index, block in enumerate(blocks):
        blocks[index] = torch.compile(block, backend=graphs, fullgraph=True)
    before = [set(vars(module)) for module in pipe.transformer.modules()]
    with attach(pipe, config) as parallel:
        assert torch.equal(generate(parallel), expected)
        assert torch.equal(generate(parallel), expected)
    assert 0 < graphs.made <= 4
    assert before == [set(vars(module)) for module in pipe.transformer.modules()]


@pytest.mark.parametrize("config", BY_LAYERS.values(), ids=BY_LAYERS)
def test_layers_that_run_apart_leave_a_whole_graph_aside_and_say_so(config: dict[str, Any]) -> None:
    pipe, graphs = build("sd3"), Graphs()
    compile_whole(pipe, graphs)
    with attach(pipe, config) as parallel:
        assert torch.equal(generate(parallel), uncompiled("sd3", config))
        assert parallel.report is not None
        assert [note for note in parallel.report.notes if "so it ran uncompiled; compile its blocks instead" in note]
    assert graphs.made == 0


@pytest.mark.parametrize(("name", "config"), BY_BLOCKS.values(), ids=BY_BLOCKS)
def test_parts_of_an_image_run_compiled_blocks(name: str, config: dict[str, Any]) -> None:
    check_graphs(name, config, compile_blocks)


@pytest.mark.parametrize(
    ("compile", "config"),
    [(compile_whole, {"strategy": "sequence"}), (compile_whole, SHARED["shards"])]
    + [(compile, PATCHES) for compile in (compile_whole, compile_blocks)],
)
def test_hooks_within_a_graph_are_refused(compile: Callable[[Any, Graphs], None], config: dict[str, Any]) -> None:
    pipe, graphs = build("sd3"), Graphs()
    sentence = (
        r"^SD3Transformer2DModel is compiled"
        r"( as a whole, so its attention cannot be shared between ranks|, so its attention cannot be cut into patches)"
        r" \(strategy '[a-z]+'\); use (compile='blocks', or 'cfg' with shards=1|'cfg', or do without torch.compile)$"
    )
    with attach(pipe, config) as parallel:
        compile(pipe, graphs)  # after all
        with pytest.raises(UsageError, match=sentence):
            generate(parallel)
    with pytest.raises(UsageError, match=sentence):
        attach(pipe, config)
    assert graphs.made == 0


@pytest.mark.parametrize(
    "config",
    [REUSE, {"strategy": "asyncdiff"}, SHARED["shards"], SHARED["reuse steps"]],
    ids=["reuse", "asyncdiff", "shards", "reuse of shards"],
)
def test_blocks_may_be_compiled_between_two_calls(config: dict[str, Any]) -> None:
    pipe, graphs, expected = build("sd3"), Graphs(), uncompiled("sd3", config)
    with attach(pipe, config) as parallel:
        generate(parallel)
        compile_blocks(pipe, graphs)
        assert torch.equal(generate(parallel), expected)
    assert 0 < graphs.made <= 4


@pytest.mark.parametrize("config", [REUSE, SHARED["shards"], SHARED["reuse steps"]], ids=["stages", "parts", "both"])
def test_hooks_come_off_compiled_blocks_without_rests(config: dict[str, Any]) -> None:
    pipe, graphs = build("sd3"), Graphs()
    compile_blocks(pipe, graphs)
    before = [(module._compiled_call_impl, set(vars(module))) for module in denoiser_of(pipe).modules()]
    with attach(pipe, config) as parallel:
        generate(parallel)
    assert before == [(module._compiled_call_impl, set(vars(module))) for module in denoiser_of(pipe).modules()]


def test_a_hook_of_somebody_else_stays_around_the_graph() -> None:
    module, graphs = denoiser_of(build("sd3")).norm_out, Graphs()
    module.compile(backend=graphs)
    undo, inside = expose(module), module.forward
    module.forward = lambda *args: inside(*args)
    undo()
    module(torch.ones(1, 2, 16), torch.ones(1, 16))
    assert (graphs.made, graphs.runs) == (1, 1)


def test_ranks_tell_each_other_how_they_are_compiled() -> None:
    pipe = build("sd3")
    networks = (denoiser_of(pipe),)
    assert how_compiled(pipe, networks) == "none"
    compile_blocks(pipe, Graphs())
    assert how_compiled(pipe, networks) == "blocks"
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert how_compiled(pipe, networks) == "whole"


@pytest.mark.parametrize(("name", "blocks"), [("sd3", 4), ("sdxl", 17)])
def test_blocks_of_the_known_families_are_found(name: str, blocks: int) -> None:
    pipe = build(name)
    compile_denoisers(pipe, "blocks")
    assert sum(module._compiled_call_impl is not None for module in denoiser_of(pipe).modules()) == blocks
    compile_denoisers(pipe, "whole")
    assert how_compiled(pipe, (denoiser_of(pipe),)) == "whole"


def test_what_cannot_be_compiled_is_refused() -> None:
    pipe = build("sd3")
    pipe.transformer = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="not known which blocks Linear repeats; use compile='whole'"):
        compile_denoisers(pipe, "blocks")
    with pytest.raises(UsageError, match="unknown compile 'all'; choose one of none, blocks, whole"):
        load_pipeline("tiny-sd3", compile="all")
    with pytest.raises(
        UsageError, match="compile 'blocks' needs networks that stay on their device, got offload 'model'"
    ):
        check_compile("blocks", "model")


@pytest.mark.slow
@pytest.mark.parametrize("config", [{"strategy": "cfg"}, {"strategy": "published"}], ids=["cfg", "published"])
def test_inductor_makes_the_same_image_to_rounding(config: dict[str, Any]) -> None:
    latents = []
    for how in ("none", "blocks"):
        pipe = load_pipeline("tiny-sd3", compile=how)
        with attach(pipe, config) as parallel:
            call = {"num_inference_steps": 6, "guidance_scale": GUIDANCE["tiny-sd3"], "max_sequence_length": 16}
            generator = torch.Generator().manual_seed(0)
            latents.append(parallel("a red ring", generator=generator, output_type="latent", **call).images)
    torch.testing.assert_close(latents[1], latents[0], rtol=1e-3, atol=1e-3)
