"""A scheduler of your own: whatever stands on `pipe.scheduler` is used.

    python examples/custom_scheduler.py [folder]

`hybrid` reads from the scheduler how far each step moves the latents, and takes the thresholds that were calibrated for
the nearest scheduler and number of steps. Where those are not the very ones, a note in the report says so;
`hybridiff calibrate` measures your own.
"""

import sys
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler

from hybridiff import ParallelConfig, load_pipeline, parallelize

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples")
folder.mkdir(parents=True, exist_ok=True)

pipe = load_pipeline("tiny-sdxl")
pipe.scheduler = DPMSolverMultistepScheduler.from_config(
    pipe.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True
)

# simulate=True plays both devices in this process: the same image, no speed-up. Leave it out under torchrun.
with parallelize(pipe, ParallelConfig(strategy="hybrid", devices=2, simulate=True)) as parallel:
    image = parallel(
        "a large orange triangle on a black background",
        num_inference_steps=20,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]

image.save(folder / "custom-scheduler.png")
report = parallel.report
print(f"{folder / 'custom-scheduler.png'}: {report.devices} devices, ideal speed-up {report.ideal_speedup:.1f}x")
print(*report.notes, sep="\n")
