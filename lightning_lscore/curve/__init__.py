"""What a curve says: when to stop, where L ends, what more would buy. Read ``patience`` first."""
