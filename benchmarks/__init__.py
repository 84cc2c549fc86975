"""One script per claim of the README; `results/` holds what they wrote. `python -m benchmarks.claims` prints the table."""
