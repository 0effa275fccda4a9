"""Processes of a job: fork server, GPU locks, instruction set, marker of a running stage. Imports next to nothing."""
