"""Damaged inputs: what a user can hand to a command ends in one sentence, whatever it is, and harms no file.

`make fuzz` runs thousands, drawn by a seed; `test_fuzz.py` a few, and every one that was ever found (`corpus/`).
"""
