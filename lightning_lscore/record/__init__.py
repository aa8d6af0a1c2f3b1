"""The record of a run, ``lscore.jsonl``: write, read, compare. Read ``record`` first."""
