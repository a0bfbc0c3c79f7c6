"""Fingerprints of what the embedded models generate: the bits of the latents, recorded before the code was rearranged.

`python -m support.fingerprints` (from tests/) generates every case and writes the file anew; only a change that is
meant to change images may do so, and has to say why.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hybridiff import ParallelConfig, load_pipeline, parallelize

FILE = Path(__file__).parent.parent / "fingerprints" / "embedded.json"
PROMPTS = (
    "a small red circle left of a large blue square on a yellow background",
    "a green ring on a white background",
)
GUIDANCE = {"tiny-sdxl": 2.0, "tiny-sd3": 5.0}


@dataclass(frozen=True)
class Case:
    """One generation: what is called, and how the ranks share it."""

    model: str
    how: str
    steps: int
    config: dict[str, Any]
    scheduler: str | None = None
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join(filter(None, [self.model, self.how, f"{self.steps} steps", self.scheduler]))

    def generate(self) -> dict[str, Any]:
        """Generate it and take its fingerprint."""
        pipe = load_pipeline(self.model, scheduler=self.scheduler)
        pipe.set_progress_bar_config(disable=True)
        with parallelize(pipe, ParallelConfig(simulate=True, **self.config)) as parallel:
            latents = parallel(
                list(PROMPTS),
                num_inference_steps=self.steps,
                guidance_scale=GUIDANCE[self.model],
                generator=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
                output_type="latent",
                **self.call,
            ).images
            assert parallel.report is not None
            schedule = [step.kind.value for step in parallel.report.steps]
        return fingerprint(latents, schedule)


def fingerprint(latents: torch.Tensor, schedule: list[str]) -> dict[str, Any]:
    """The bits of latents, (B, C, H, W); and for machines that compute other bits their means over large squares."""
    coarse = torch.nn.functional.adaptive_avg_pool2d(latents.float(), 4).flatten().tolist()
    return {
        "sha256": hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest(),
        "coarse": [round(value, 3) for value in coarse],
        "schedule": "".join(kind[0] for kind in schedule),
    }


def machine() -> str:
    """What decides the bits of a result: the processor, and the version of torch."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return f"{platform.machine()}, {cpu}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def cases() -> list[Case]:
    """Every way of sharing that is to stay as it is, bit for bit."""
    found = []
    for model in GUIDANCE:
        found += [
            Case(model, f"{name} on one device", 20, {"strategy": name, "devices": 1}) for name in ("serial", "hybrid")
        ]
        found += [Case(model, "cfg", 20, {"strategy": "cfg"})]
        found += [
            Case(model, f"hybrid {quality}", 50, {"strategy": "hybrid", "quality": quality})
            for quality in (0.0, "draft", "balanced", "high", 0.95, "exact")
        ]
        found += [
            Case(model, "hybrid reuse", 20, {"strategy": "hybrid", "step_kind": "reuse", "tolerance": 0.2}),
            Case(model, "hybrid by hand", 20, {"strategy": "hybrid", "full_steps": "0-3,6,9,12,15,17-19"}),
            Case(model, "hybrid negative", 20, {"strategy": "hybrid"}, call={"negative_prompt": "a red circle"}),
            Case(model, "published", 50, {"strategy": "published"}),
            Case(model, "published", 20, {"strategy": "published"}),
        ]
    for scheduler in ("dpmsolver++", "unipc", "euler-ancestral"):
        found.append(Case("tiny-sdxl", "hybrid", 28, {"strategy": "hybrid"}, scheduler))
    found.append(Case("tiny-sdxl", "hybrid", 10, {"strategy": "hybrid"}, "heun"))
    return found


def write() -> None:
    """Generate every case and write the file."""
    torch.set_num_threads(1)
    generated = {case.name: case.generate() for case in cases()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in generated.items())
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(f'{{\n "machine": {json.dumps(machine())},\n "cases": {{\n{lines}\n }}\n}}\n')


if __name__ == "__main__":
    write()
