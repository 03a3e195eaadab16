"""Which rows are kept, and why."""
