"""Records as tables, sentences and pictures. Read ``tables`` first."""
