"""Preference data from documents: generators, scorers, and one file a pipeline."""
