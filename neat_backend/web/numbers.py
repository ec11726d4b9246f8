"""Parsing of whole numbers in a query."""

from __future__ import annotations

import re


def whole_number(text: str, most: int) -> int | None:
    """Parse decimal digits, leading zeros allowed, as a number from 0 to `most`; None for another text."""
    digits = text.lstrip("0") or text[:1]
    if not re.fullmatch("[0-9]+", digits) or len(digits) > len(str(most)):  # Python refuses thousands of digits
        return None
    return int(digits) if int(digits) <= most else None
