"""What belongs to the process: threads, the clock, failpoints, settings of the whole process."""
