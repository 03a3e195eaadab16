"""Ways to a longer window held against each other: PROTOCOL.md says what is run."""
