"""Processes: how they are wrapped, and what they have to agree on."""
