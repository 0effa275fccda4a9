"""The workflow as values: its paths, rules and jobs, what they take, and what the Snakefile does beside its rules."""
