"""The record of a run, ``lscore.jsonl``: written, read, compared. Read ``records`` first."""
