"""Reference log-probs: where they come from, and the cache that keeps them."""
