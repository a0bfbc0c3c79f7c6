"""Comparisons with what others bring, measured by the package's own evaluation."""
