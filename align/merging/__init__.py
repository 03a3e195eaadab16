"""Weights of several models as one: rules that work tensor by tensor, where models come from, what is written."""
