"""Which parameters to train so that a new task costs an old one least: PROTOCOL.md says what is run."""
