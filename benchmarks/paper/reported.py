"""What the paper reports (Jung et al. 2026, arXiv 2602.21760), as far as this project knows its tables.

Of 5,000 captions of MS-COCO 2014, 50 steps, 1024 x 1024, RTX 3090s behind PCIe 3. Fidelities are against the images of
one device. Condition-based partitioning alone stems from its ablation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """One line of the paper; None where it says nothing.

    Attributes:
        seconds: Latency of a generation.
        speedup: Over the original on one device.
        gibibytes: "Comm.", a generation.
        fid: Against the original's images.
        lpips: Likewise.
        psnr: Likewise, in dB.
    """

    seconds: float | None = None
    speedup: float | None = None
    gibibytes: float | None = None
    fid: float | None = None
    lpips: float | None = None
    psnr: float | None = None


MODELS = {"tiny-sdxl": "SDXL", "tiny-sd3": "SD3-medium"}
"""The paper's model in whose place each embedded one stands."""

REPORTED: dict[str, dict[tuple[str, int], Reported]] = {
    "tiny-sdxl": {
        ("original", 1): Reported(16.49),
        ("distrifusion", 2): Reported(13.53, 1.22, 0.525, 4.864, 0.146, 24.634),
        ("asyncdiff", 2): Reported(12.54, 1.31, 9.830, 4.103, 0.108, 26.387),
        ("partitioning", 2): Reported(9.24, 1.78, fid=3.623),
        ("published", 2): Reported(7.12, 2.31, 0.516, 4.100, 0.107, 26.640),
        ("published-10", 2): Reported(6.89, 2.39, fid=5.942),
        ("published-20", 2): Reported(6.44, 2.56, fid=7.966),
        ("published-30", 2): Reported(5.94, 2.78, fid=9.191),
        ("published-batch", 4): Reported(4.83, 3.41, 0.751, 5.544),
    },
    "tiny-sd3": {
        ("original", 1): Reported(19.36),
        ("asyncdiff", 2): Reported(9.82, 1.97, 1.290, 2.032, 0.052, 27.812),
        ("sequence", 2): Reported(14.31, 1.35, 121.646, 1.909, 0.047, 27.857),
        ("parastep", 2): Reported(9.98, 1.94, 0.032, 3.350, 0.112, 22.917),
        ("published", 2): Reported(9.33, 2.07, 0.189, 1.878, 0.046, 27.875),
        ("published-batch", 4): Reported(5.53, 3.50, 0.572, 2.109),
    },
}
"""By embedded model, then by method (`methods.Method.key`) and number of devices."""
