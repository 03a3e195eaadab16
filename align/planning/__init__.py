"""What a run will need, before it runs: memory per GPU by part, time a step, and the fastest settings that fit."""
