"""The equation L = perplexity(T) · f(D) · f(A) · f(H), stdlib only. Read ``formula`` first."""
