"""What a curve shows: when to stop, where L ends, what more would buy. Read ``patience`` first."""
