"""Which parameters train: adapters, and halves and regions of the model itself."""
