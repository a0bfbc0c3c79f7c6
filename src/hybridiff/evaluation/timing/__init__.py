"""`hybridiff bench`: strategies timed side by side, in turns."""
