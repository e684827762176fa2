"""The plan: what a run would send, take and cost."""
