"""Attention patterns, and which layers and heads have which: the group `attention`. Imports no torch."""
