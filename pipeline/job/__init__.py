"""The job: one attempt at a run, from its opening to its summary."""
