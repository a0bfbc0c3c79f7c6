from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, UsageError, parallelize
from hybridiff.distributed.consistency import describe_call
from hybridiff.models.loras import Lora, find_loras, put_loras
from support.loras import save_lora
from zoo import ZOO, Specimen, run

FAMILIES = ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline"]


def test_a_scale_follows_the_name(tmp_path: Path) -> None:
    file = tmp_path / "ring.safetensors"
    file.touch()
    odd = tmp_path / "a:1"
    odd.mkdir()
    found = find_loras([str(file), f"{file}:0.5", f"{tmp_path}:-1", str(odd)])
    assert [(lora.path, lora.scale) for lora in found] == [
        (str(file), 1.0),
        (str(file), 0.5),
        (str(tmp_path), -1.0),
        (str(odd), 1.0),
    ]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["/nowhere/ring.safetensors"], "no LoRA '/nowhere/ring.safetensors': no such file or folder"),
        ([f"{__file__}"], "is no .safetensors file"),
        (["owner/name:strong"], "the scale of the LoRA owner/name must be a number, got 'strong'"),
        ("ring.safetensors", "loras must be a list, got 'ring.safetensors'"),
    ],
)
def test_what_is_no_lora_is_refused(texts: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_loras(texts)


def test_loras_without_peft_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hybridiff.models.loras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'hybridiff\[lora\]'"):
        find_loras([str(tmp_path)])


def stock_run(specimen: Specimen, lora: Lora | None) -> torch.Tensor:
    pipe = specimen.build()
    put_loras(pipe, [lora] if lora else [])
    return run(specimen, pipe)


@pytest.mark.parametrize("strategy", ["cfg", "hybrid"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loaded_before_and_after_and_swapped(name: str, strategy: str, tmp_path: Path) -> None:
    specimen = ZOO[name]
    pipe = specimen.build()
    one, other = (Lora("a", save_lora(pipe, tmp_path / str(seed), seed, 0.3), 0.7) for seed in (1, 2))
    stock = {lora: stock_run(specimen, lora) for lora in (None, one, other)}
    assert not torch.equal(stock[None], stock[one])
    assert not torch.equal(stock[one], stock[other])
    put_loras(pipe, [one])
    quality = {"quality": "exact"} if strategy == "hybrid" else {}
    parallel = parallelize(pipe, ParallelConfig(strategy=strategy, simulate=True, **quality))
    for lora in (one, other, None, one):
        put_loras(pipe, [lora] if lora else [])
        torch.testing.assert_close(run(specimen, parallel), stock[lora], rtol=1e-4, atol=1e-4)
    parallel.detach()
    assert torch.equal(run(specimen, pipe), stock[one])


def test_a_lora_changes_a_split_network(tmp_path: Path) -> None:
    specimen = ZOO["StableDiffusion3Pipeline"]
    pipe = specimen.build()
    lora = Lora("a", save_lora(pipe, tmp_path, 1, 0.3))
    config = ParallelConfig(strategy="hybrid", step_kind="reuse", full_steps="0-3", simulate=True)
    parallel = parallelize(pipe, config)
    plain = run(specimen, parallel, steps=6)
    put_loras(pipe, [lora])
    changed = run(specimen, parallel, steps=6)
    put_loras(pipe, [])
    assert not torch.equal(plain, changed)
    assert torch.equal(run(specimen, parallel, steps=6), plain)


def test_one_that_does_not_fit_leaves_none_behind(tmp_path: Path) -> None:
    specimen = ZOO["WanPipeline"]
    pipe = specimen.build()
    fits = Lora("mine", save_lora(pipe, tmp_path / "wan", 1))
    plain = run(specimen, pipe)
    for name in ("FluxPipeline", "StableDiffusionXLPipeline"):
        stranger = Lora("theirs", save_lora(ZOO[name].build(), tmp_path / name, 1))
        with pytest.raises(UsageError, match="the LoRA theirs does not fit WanPipeline: "):
            put_loras(pipe, [fits, stranger])
        assert torch.equal(run(specimen, pipe), plain)


def test_a_pipeline_that_takes_none_is_refused(tmp_path: Path) -> None:
    pipe = ZOO["PixArtAlphaPipeline"].build()
    with pytest.raises(UsageError, match="PixArtAlphaPipeline takes no LoRA"):
        put_loras(pipe, [Lora("a", str(tmp_path))])
    put_loras(pipe, [])


def test_ranks_with_other_loras_are_told_apart(tmp_path: Path) -> None:
    pipe = ZOO["WanPipeline"].build()
    paths = [save_lora(pipe, tmp_path / str(seed), seed) for seed in (1, 2)]

    def described(*loras: Lora) -> str | None:
        put_loras(pipe, loras)
        return describe_call(pipe, [pipe.transformer], {}).get("LoRA")

    texts = [described(), described(Lora("a", paths[0])), described(Lora("a", paths[1]))]
    texts.append(described(Lora("a", paths[0], 0.5)))
    assert texts[0] == "none"
    assert len(set(texts)) == 4
    assert described(Lora("b", paths[0])) == texts[1]
