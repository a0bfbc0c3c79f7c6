"""Image to image on two devices: a sketch becomes an image.

    python examples/image_to_image.py [folder]

Inpainting works likewise: `task="inpainting"`, and a `mask_image` beside the image.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from hybridiff import Engine, ParallelConfig

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "out/examples")
folder.mkdir(parents=True, exist_ok=True)

# Your own image: Image.open("photo.png").convert("RGB"), its sides multiples of 8 pixels.
sketch = Image.new("RGB", (128, 128), "lightyellow")
ImageDraw.Draw(sketch).ellipse((20, 40, 70, 90), fill="darkblue")
sketch.save(folder / "sketch.png")

with Engine("tiny-sdxl", devices=2, config=ParallelConfig(strategy="hybrid"), task="image-to-image") as engine:
    result = engine.generate(
        prompt="a large blue square at the left on a yellow background",
        image=sketch,
        strength=0.8,  # of the 25 steps the last 20 run, from the sketch with noise
        seed=0,
        num_inference_steps=25,
        guidance_scale=2.0,
    )

result.images[0].save(folder / "image-to-image.png")
report = result.report
print(f"{folder / 'image-to-image.png'}: {report.devices} devices, {len(report.steps)} steps")
