"""One image on two devices, from an ordinary script.

    python examples/generate.py [folder]

An `Engine` starts the ranks as processes of their own. They never import this script, so it needs no
`if __name__ == "__main__":`, and nothing in it has to be picklable but the arguments of a request.
"""

import sys
from pathlib import Path

from hybridiff import Engine, ParallelConfig

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples")
folder.mkdir(parents=True, exist_ok=True)

# The model: an embedded one, a local folder in diffusers' format, or a hub id. Without a GPU each rank is one CPU core.
with Engine("tiny-sdxl", devices=2, config=ParallelConfig(strategy="hybrid", quality="balanced")) as engine:
    result = engine.generate(
        prompt="a small red circle left of a large blue square on a yellow background",
        seed=0,  # without one the engine draws a seed, which stands in result.seed
        num_inference_steps=20,  # this and everything else goes to the stock pipeline
        guidance_scale=2.0,
    )

result.images[0].save(folder / "generate.png")
report = result.report
print(f"{folder / 'generate.png'}: {report.devices} devices, ideal speed-up {report.ideal_speedup:.1f}x")
print(*report.notes, sep="\n")
