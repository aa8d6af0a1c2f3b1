"""H: which devices a run occupies and what they do meanwhile; start with ``probe.py``."""
