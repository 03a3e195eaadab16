"""A run: how a command starts, its folder, its checkpoints, how it goes on, its jobs and processes."""
