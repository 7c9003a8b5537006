"""Why positions must stay as they are."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Reason(enum.Enum):
    """A kind of cause; the value is its text, ``{}`` in it the cause's detail."""

    INPUT = "an input"
    OUTPUT = "an output"
    UNREAD = "not read with these inputs"
    CONSTANT = "a captured constant {}"
    NUMBERED = "numbered positions (iota)"
    RANDOM_BITS = "random bits"
    SCAN_STEPS = "the steps of a scan"
    LOOP_CONDITION = "the condition of a loop"
    NO_RULE = "no rule for the primitive {!r}"
    PRIMITIVE = "{}"
    """What the primitive that is the detail computes depends on the order of positions."""
    STRIDED_SLICE = "a slice with a stride"
    REVERSAL = "a reversal"
    PADDING = "padding that crops, or goes in between"
    CONVOLUTION_WINDOW = "the window of a convolution"
    BATCH_GROUPS = "a convolution in batch groups"
    RESHAPE = "a reshape whose factors do not nest"
    BOUNDARY = "a boundary through a product of factors"
    PRODUCTS = "products of factors that do not nest"


class Cause(NamedTuple):
    """What froze positions.

    Attributes:
      reason: which kind of cause it is.
      detail: which one: a primitive's name, a constant's type.
    """

    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return self.reason.value.format(self.detail)


REPORTED = frozenset(
    {
        Reason.NO_RULE,
        Reason.CONSTANT,
        Reason.NUMBERED,
        Reason.RANDOM_BITS,
        Reason.STRIDED_SLICE,
        Reason.REVERSAL,
        Reason.PADDING,
        Reason.BATCH_GROUPS,
        Reason.RESHAPE,
        Reason.BOUNDARY,
        Reason.PRODUCTS,
    }
)
"""Reasons that are not in the nature of the model, as its inputs and outputs are: they are noted,
for the truth, or another way to write the model, may have more symmetries."""
