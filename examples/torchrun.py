"""A pipeline of your own on the ranks that torchrun starts.

    torchrun --nproc-per-node 2 examples/torchrun.py [folder]

`parallelize` joins torchrun's process group itself (NCCL with GPUs, gloo without) and leaves it on `detach()`, here at
the end of the `with` block. A group that you have initialised is used as it is.
"""

import os
import sys
from pathlib import Path

import torch

from hybridiff import ParallelConfig, load_pipeline, parallelize

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples")

# Any stock pipeline will do, the same one on every rank: StableDiffusionXLPipeline.from_pretrained(...).to(device).
device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
pipe = load_pipeline("tiny-sd3", device)

with parallelize(pipe, ParallelConfig(strategy="hybrid")) as parallel:
    images = parallel(
        "a green cross at the top on a purple background",
        num_inference_steps=20,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(0),
    ).images

if images is not None:  # on rank 0; ParallelConfig(outputs="all") gives every rank the images
    folder.mkdir(parents=True, exist_ok=True)
    images[0].save(folder / "torchrun.png")
    report = parallel.report
    print(f"{folder / 'torchrun.png'}: {report.devices} devices, ideal speed-up {report.ideal_speedup:.1f}x")
