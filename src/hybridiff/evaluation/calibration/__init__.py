"""`hybridiff calibrate`: the thresholds of a model."""
