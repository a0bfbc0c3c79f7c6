"""How the embedded models were made: their shapes, their training, their evaluation."""
