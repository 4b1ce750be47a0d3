"""Numbers as a person reads them: sizes and differences of accuracy."""

from __future__ import annotations

__all__ = ["megabytes", "percent_points"]


def megabytes(size: int) -> str:
    """Bytes as kB or MB, powers of ten.

    Example:
        >>> megabytes(401_640), megabytes(60_500_000)
        ('401.6 kB', '60.50 MB')
    """
    return f"{size / 1e3:,.1f} kB" if size < 1_000_000 else f"{size / 1e6:,.2f} MB"


def percent_points(difference: float) -> str:
    """A difference of two accuracies, given as fractions, in percentage points.

    Example:
        >>> percent_points(-0.0123)
        '-1.23 points'
    """
    return f"{100 * difference:+.2f} points"
