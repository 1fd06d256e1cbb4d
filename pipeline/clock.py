"""Seconds as people read them."""

import math


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, rounded up: 0:01:30."""
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
