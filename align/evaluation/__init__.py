"""What a trained model can do: one file a suite, behind `align evaluate`."""
