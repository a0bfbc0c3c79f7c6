"""Which step is of which kind, and what that rests on."""
