"""`hybridiff simulate` and `study`: fidelity against ideal speed-up, for many settings on one device."""
