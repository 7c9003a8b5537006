"""Recorded rows of small runs: what a change of the structure must leave as it is."""
