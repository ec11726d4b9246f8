"""Whole numbers of a query, where anybody may write anything."""

from __future__ import annotations

import re


def whole_number(text: str, most: int) -> int | None:
    """The number from 0 to `most` that a text is in decimal digits, leading zeros or not; None = it is none."""
    digits = text.lstrip("0") or text[:1]
    if not re.fullmatch("[0-9]+", digits) or len(digits) > len(str(most)):  # Python refuses thousands of digits
        return None
    return int(digits) if int(digits) <= most else None
