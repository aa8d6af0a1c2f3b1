"""One run over time: its clock, spending, exchange and state. Read ``tracker`` first."""
