"""Scales of queries by their position: what `model.query_scale` names, one file each."""
