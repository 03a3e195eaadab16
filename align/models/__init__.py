"""Models and tokenizers: settings, loading, adapters, RoPE, quantisation, and what a model is made of."""
