"""Runs on disk: the folder (no torch in there), the checkpoint, and what is recorded of the machine."""
