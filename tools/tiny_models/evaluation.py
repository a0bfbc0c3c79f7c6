"""Generate held-out captions with the stock pipelines and check the images; measure the branches' discrepancy."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from hybridiff.models.tiny.checking import check
from hybridiff.models.tiny.scenes import (
    COLOURS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    captions,
    drop_attributes,
    parse_caption,
    sample_scenes,
)

from .denoisers import denoiser
from .drawing import render

ATTRIBUTES = ("colours", "shapes", "position", "background", "sizes", "core", "all")


def generate(pipeline: Any, texts: list[str], seed: int, batch: int, **arguments: Any) -> list[Image.Image]:
    """One image per caption; image i starts from the noise of seed + i, whatever the batch."""
    images: list[Image.Image] = []
    pipeline.set_progress_bar_config(disable=True)
    for start in tqdm(range(0, len(texts), batch), desc="batches", mininterval=10):
        part = texts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(part))]
        images += pipeline(part, generator=generators, **arguments).images
    return images


def evaluate(
    pipeline: Any,
    objects: int,
    count: int,
    steps: int,
    guidance: float,
    seed: int,
    batch: int = 10,
    split: str = "evaluation",
    **arguments: Any,
) -> tuple[dict[str, Any], list[Image.Image], list[str]]:
    """Counts of right attributes over held-out captions, with the images and the captions that failed."""
    texts = captions(split, count, objects, seed)
    arguments = {"num_inference_steps": steps, "guidance_scale": guidance, "height": 128, "width": 128, **arguments}
    images = generate(pipeline, texts, seed, batch, **arguments)
    verdicts = [check(image, parse_caption(text)) for image, text in zip(images, texts, strict=True)]
    counts = {name: sum(getattr(verdict, name) is not False for verdict in verdicts) for name in ATTRIBUTES}
    failed = [text for text, verdict in zip(texts, verdicts, strict=True) if not verdict.all]
    return {"objects": objects, "captions": count, "steps": steps, "guidance": guidance, **counts}, images, failed


def grid(images: list[Image.Image], columns: int = 10) -> Image.Image:
    """Images side by side, in reading order."""
    side = images[0].width
    sheet = Image.new("RGB", (columns * side, -(-len(images) // columns) * side), "gray")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * side, index // columns * side))
    return sheet


# ---------------------------------------------------------------- the checker itself


def check_checker(count: int, objects: int, seed: int = 0) -> dict[str, str]:
    """How many rendered scenes the checker accepts: of their own caption, and of one that differs in one attribute."""
    rng = np.random.default_rng([11, seed])
    accepted, tried = Counter[str](), Counter[str]()
    for scene in islice(sample_scenes("train", objects, rng), count):
        image = (render(scene, rng) * 255).round().astype(np.uint8)
        captioned = [("right caption", drop_attributes(scene, rng)), *one_difference(scene, rng)]
        for name, other in captioned:
            tried[name] += 1
            accepted[name] += check(image, other).all
    return {name: f"{accepted[name]} of {tried[name]}" for name in tried}


def one_difference(scene: Scene, rng: np.random.Generator) -> list[tuple[str, Scene]]:
    """Scenes that differ from a fully described one in exactly one attribute, with the attribute's name."""

    def other(names: tuple[str, ...], *taken: str | None) -> str:
        return str(rng.choice([name for name in names if name not in taken]))

    index = int(rng.integers(len(scene.objects)))
    item = scene.objects[index]
    colours = [one.colour for one in scene.objects]

    def changed(**fields: str) -> Scene:
        objects = list(scene.objects)
        objects[index] = replace(item, **fields)
        return replace(scene, objects=tuple(objects))

    found = [
        ("colour", changed(colour=other(COLOURS, scene.background, *colours))),
        ("shape", changed(shape=other(SHAPES, item.shape))),
        ("size", changed(size=other(SIZES, item.size))),
        ("background", replace(scene, background=other(COLOURS, scene.background, *colours))),
    ]
    if scene.relation is None:
        return [*found, ("position", changed(position=other(POSITIONS, item.position)))]
    return [*found, ("relation", replace(scene, relation=other(RELATIONS, scene.relation)))]


# ---------------------------------------------------------------- discrepancy of the branches


def discrepancy(pipeline: Any, count: int, steps: int, guidance: float, seed: int, batch: int = 16) -> dict[str, Any]:
    """Mean |c - u| / mean |u| of the raw predictions of both branches: mean and deviation over captions, each step."""
    texts = captions("calibration", (count + 1) // 2, 1, seed) + captions("calibration", count // 2, 2, seed)
    curves: list[np.ndarray] = []
    seen: list[torch.Tensor] = []

    def record(module: Any, inputs: Any, output: Any) -> None:
        without, conditional = (output[0] if isinstance(output, tuple) else output.sample).chunk(2)
        gap = (conditional - without).abs().mean((1, 2, 3)) / without.abs().mean((1, 2, 3))
        seen.append(gap)

    handle = denoiser(pipeline).register_forward_hook(record)
    try:
        for start in range(0, count, batch):
            seen.clear()
            generate(
                pipeline,
                texts[start : start + batch],
                seed + start,
                batch,
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="latent",
                height=128,
                width=128,
            )
            curves.append(torch.stack(seen, 1).numpy())  # (captions, steps)
    finally:
        handle.remove()
    values = np.concatenate(curves)
    return {
        "captions": count,
        "steps": steps,
        "guidance": guidance,
        "mean": values.mean(0).round(5).tolist(),
        "deviation": values.std(0, ddof=1).round(5).tolist(),
    }


def plot_discrepancy(results: dict[str, dict[str, Any]], path: Path) -> None:
    """One curve per model, with a band of two deviations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5 * len(results), 3.4), squeeze=False)
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        mean, deviation = np.array(result["mean"]), np.array(result["deviation"])
        steps = np.arange(1, len(mean) + 1)
        axis.plot(steps, mean, label="mean")
        low, high = np.maximum(mean - 2 * deviation, 1e-3), mean + 2 * deviation
        axis.fill_between(steps, low, high, alpha=0.25, label="2 sigma")
        axis.set(
            title=f"{name}, {result['captions']} captions", xlabel="step", ylabel="M", yscale="log", ylim=(1e-2, None)
        )
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
