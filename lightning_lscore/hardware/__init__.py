"""H: what devices are occupied and what they do meanwhile. Read ``probe`` first."""
