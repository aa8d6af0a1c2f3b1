"""L = perplexity(T) · f(D) · f(A) · f(H), pure and without torch. Read ``formula`` first."""
