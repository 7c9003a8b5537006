"""One command a file: ``python -m experiments.NAME --help``."""
