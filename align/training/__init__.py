"""Training: the trainer, a run's settings, methods, and what a run reports."""
