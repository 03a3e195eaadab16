"""What a trained model can do: one file a suite and what suites share, behind `align evaluate`."""
