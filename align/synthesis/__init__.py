"""Preference data from documents: one package a pipeline, `selection`, and what they share."""
