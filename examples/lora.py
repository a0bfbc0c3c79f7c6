"""A LoRA on two devices: merged into the weights once, then loaded by every rank.

    python examples/lora.py [folder]

All ranks must hold the same weights. An `Engine` loads its model from a folder, so the LoRA is merged into a copy of
the model. With peft installed the merge is diffusers' own, for LoRA files of any origin:

    pipe.load_lora_weights("style.safetensors")
    pipe.fuse_lora(lora_scale=0.8)
    pipe.unload_lora_weights()

Under torchrun do the same on every rank before `parallelize(pipe)`; no copy of the model is needed then.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hybridiff import Engine, ParallelConfig, load_pipeline

PROMPT = "a large red ring on a white background"
CALL = {"num_inference_steps": 20, "guidance_scale": 2.0}


def make_lora(unet: torch.nn.Module, file: Path, rank: int = 4) -> None:
    """Write a random LoRA of all attention projections, in the format of diffusers' `save_lora_weights`."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, layer in unet.named_modules():
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator) / rank
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator) / rank
    save_file(weights, file)


@torch.no_grad()
def merge_lora(unet: torch.nn.Module, file: Path, scale: float) -> int:
    """Add scale * B @ A to the weights that a LoRA file names; returns how many those are."""
    weights = load_file(file)
    names = [key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")]
    for name in names:
        layer = unet.get_submodule(name.removeprefix("unet."))
        layer.weight += scale * weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
    return len(names)


folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples")
folder.mkdir(parents=True, exist_ok=True)

pipe = load_pipeline("tiny-sdxl")
pipe(PROMPT, generator=torch.Generator().manual_seed(0), **CALL).images[0].save(folder / "without-lora.png")

make_lora(pipe.unet, folder / "lora.safetensors")  # yours would come from training
merged = merge_lora(pipe.unet, folder / "lora.safetensors", scale=1.0)
pipe.save_pretrained(folder / "tiny-sdxl-with-lora")

# The merged model is a new one to hybrid: nobody calibrated it, so its quality is a promise that is kept by measuring.
with Engine(folder / "tiny-sdxl-with-lora", devices=2, config=ParallelConfig(strategy="hybrid")) as engine:
    result = engine.generate(prompt=PROMPT, seed=0, **CALL)

result.images[0].save(folder / "lora.png")
print(f"{folder / 'lora.png'}: {result.report.devices} devices, {merged} merged layers")
print(f"fidelity in dB: {result.report.fidelity}")
