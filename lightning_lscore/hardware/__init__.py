"""H: which devices a run occupies and what they do meanwhile. Read ``probe`` first."""
