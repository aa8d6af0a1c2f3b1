"""D and A: a model's parameters, its FLOP, and the tokens of its batches. Read ``tokens`` first."""
