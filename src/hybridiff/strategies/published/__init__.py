"""The method as published (Jung et al. 2026): its switching rule, and its exchange between two stages."""
