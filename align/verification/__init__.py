"""What `align verify` compares: a small copy of a model, plain padded rows, and the shared forward."""
