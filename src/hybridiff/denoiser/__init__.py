"""What we know of a denoiser's structure: its calls, its blocks, its stages."""
