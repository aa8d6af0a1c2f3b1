"""T: logits and labels out of a module, and their NLL. Read ``capture`` first."""
