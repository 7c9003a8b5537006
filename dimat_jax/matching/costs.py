"""What both matchers can maximise."""

COSTS = ("correlation", "covariance", "inner_product")

CONSTANT_TOLERANCE = 1e-5
"""What deviates from its mean by less than this fraction of it is taken for constant."""
