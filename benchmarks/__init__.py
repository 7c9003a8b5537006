"""One benchmark a file, ours and its opponents in one run: ``python -m benchmarks.NAME --help``."""
