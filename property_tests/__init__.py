"""Random schedules against models that predict what the library does."""
