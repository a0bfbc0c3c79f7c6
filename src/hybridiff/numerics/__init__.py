"""Pure tensor functions: guidance, extrapolation, sensitivity."""
