"""The workflow as values: paths, rules, jobs and their needs, and the functions of the Snakefile besides its rules."""
