"""What the pages say in words."""

from __future__ import annotations

TITLES = {
    1: (
        "Methods on two devices, beside the paper",
        "The paper's main comparison, both models: latency, bytes on the wire and fidelity on two devices.",
    ),
    2: (
        "Methods on four devices, beside the paper",
        "The paper's extension to four devices, beside other methods and ours on as many.",
    ),
    4: (
        "More pipelined steps, beside the paper",
        "The paper's ablation of k, the number of pipelined steps, beside ours at equal ideal speed-up.",
    ),
}
"""By the number of a table: its title, and what it shows."""

HEAD = """\
The number in the command is the one by which this table was asked for, not checked against the paper: the title says
what it shows. {captions}
captions that no model was trained on, {steps} steps, all ranks played in one process (they make the images that
processes make); PSNR and SSIM against the image of one device. *Ideal speed-up*: serial time over the critical path
of the schedules that ran, stage costs measured alone, messages free. *The same on one device*: what the approximation
alone saves there, so what is above it stems from the added devices. *Paper*: its own numbers, fidelities against its
original on one device; empty where it has none."""

_EVERYWHERE = (
    "The paper has latencies of 1024 x 1024 models on RTX 3090s behind PCIe 3, messages and schedulers included. Ours"
    " are ideal times of small models (and seconds of two CPU cores where they were measured): rows compare with rows"
    " of their own column only.",
    "PSNR and SSIM of other models, prompts and sizes compare with their own column only: our images are small and "
    "simple, and most methods come nearer to one device on them. LPIPS and FID of ours are left out: their networks' "
    "weights do not come with this project, and a few captions have no FID; `hybridiff evaluate` computes both where "
    "the weights are.",
)

_BYTES = (
    "Bytes: ours are those of all ranks together, every step and the warm-up included. The paper's column mixes "
    "unlike warm-ups and ways of counting (AsyncDiff with 9 steps of warm-up on SDXL and 1 on SD3, every module's "
    "output; twice what a ring must send; DistriFusion below two steps of what one rank holds of keys and values). "
    "They shrink with the images, too, but unevenly: activations shrink faster than predictions.",
    "Methods that share an image (DistriFusion, sequence parallel, parts) count as if parts shared the work evenly "
    "and messages were free. On networks this small neither holds: measured times say more, and the size from which "
    "sharing pays stands in [shards.md](shards.md).",
)

NOT_COMPARABLE = {
    1: (
        *_EVERYWHERE,
        *_BYTES,
        "DistriFusion is the displaced form of this project's shared images, all branches on both ranks, 4 steps of "
        "warm-up after the first. Sequence parallel is exact in its own way (keys and values gathered, rows of a "
        "U-Net exchanged), in place of xDiT's ring; the paper has no such row for SDXL, none of ParaStep there, and "
        "none of DistriFusion for SD3.",
        "Ours is at other speeds here than most; at 2.1x to 2.8x it is in [paper-4.md](paper-4.md), at many more in "
        "[fidelity.md](fidelity.md).",
        "diffusers' caches, partitioned: the paper has none. Their ideal counts the multiplications that the busier "
        "branch really did (`benchmarks/cached_pipeline.py`), not what their hooks cost; on one device, those of both. "
        "The first-block cache decides for each branch: two devices wait for the one that skips less, one device has "
        "what each of them skips, so the added one makes it less than twice as fast.",
        "The paper's 2.31x lies above the limit of its method (2.11x with two equal stages and k = 5), and its "
        "ablation has 1.78x for partitioning alone: five pipelined steps cannot explain the difference. The paper's "
        "code runs pipelined steps on results of other ages than ours (`docs/method.md`), and its first one gains "
        "nothing.",
    ),
    2: (
        *_EVERYWHERE,
        *_BYTES,
        "Which extension stands behind the paper's row of four devices is taken from arithmetic: cut into four "
        "stages, one image has full steps no faster than on two devices, so 2.16x at most at k = 5. The row is "
        "therefore put beside batch level, whose ideal is that of two devices, twice: images an hour, while one image"
        " takes as long as on two.",
        "Of the other methods the paper has no row on four devices.",
        "Two stages are split where a calibration found their times equal. Four are chosen by counted work, and have "
        "nearly equal shares of it; but the deep layers of tiny-sdxl take longer on a CPU than they count.",
    ),
    4: (
        *_EVERYWHERE,
        "The paper's ablation is of SDXL, and tells fidelity by FID, which PSNR cannot be set beside. Its speed-ups "
        "for k = 5, 10 and 20 lie above the method's limits with two equal stages (2.11x, 2.22x, 2.50x; 2.86x for 30), "
        "though partitioning alone has 1.78x there: something in its times is unexplained.",
        "For k above 5, tau1 is capped so that k steps fit: 50 - 1 - k. Where the slope rule fires earlier, that "
        "changes nothing.",
        "Ours, as fast: guided switching at the least tolerance, of those tried, whose ideal speed-up is no lower; it "
        "may be faster than it has to be.",
    ),
}
"""By table."""
