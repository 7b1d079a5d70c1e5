"""The task set that models are measured by, and how it is asked and checked."""
