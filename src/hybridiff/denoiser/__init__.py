"""What we know of a denoiser's structure: its calls, its blocks, its stages."""

DENOISERS = ("unet", "transformer", "transformer_2", "unconditional_transformer", "decoder")
"""Where pipelines keep the networks that they call at every step; the first one that there is decides the family."""
