"""The documentation's pages, and what holds their tables, figures and pictures against `benchmarks/results/`."""
