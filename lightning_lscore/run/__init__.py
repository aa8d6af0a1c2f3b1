"""One run over time: clock, spending, exchange, checkpoint state. Read ``run`` first."""
