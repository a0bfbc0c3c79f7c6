"""The method as published (Jung et al. 2026)."""
