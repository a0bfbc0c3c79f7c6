"""`hybridiff inspect`: what a pipeline looks like to this project."""
