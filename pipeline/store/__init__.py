"""Where the state of a run is kept, and how it is committed."""
