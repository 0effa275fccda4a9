"""Processes of a job: the fork server, locks of GPUs, the marker of a running stage. Imports next to nothing."""
