"""Numbers as a person reads them, and names from files as a terminal or page may show them."""

from __future__ import annotations

import math
import unicodedata

__all__ = ["above", "megabytes", "percent_points", "scaled", "shown"]

_PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}


def above(value: float, digits: int = 2) -> str:
    """A number that an upper bound is not above: rounded up.

    Example:
        >>> above(1.6541), above(2.0)
        ('1.66', '2.00')
    """
    unit = 10**digits
    return f"{math.ceil(value * unit - 1e-9) / unit:.{digits}f}"


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
    return f"{round(100 * difference, 2) + 0.0:+.2f} points"  # no negative zero


def scaled(value: float, unit: str = "") -> str:
    """A number in three digits with the prefix of its size.

    Example:
        >>> scaled(6_297_888), scaled(3.3046e-6, "J"), scaled(0, "J"), scaled(48, "J")
        ('6.30 M', '3.30 µJ', '0 J', '48.0 J')
    """
    if value == 0:
        return f"0 {unit}".rstrip()
    power = 3 * math.floor(math.log10(abs(float(f"{value:.3g}"))) / 3 + 1e-12)
    power = min(max(power, min(_PREFIXES)), max(_PREFIXES))
    number = value / 10.0**power
    digits = max(0, 2 - math.floor(math.log10(max(abs(number), 1)) + 1e-12))
    return f"{number:,.{digits}f} {_PREFIXES[power]}{unit}".rstrip()


LONGEST = 2000  # characters of a line
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def shown(text: str, *, keep: str = "", most: int = LONGEST) -> str:
    """Text with control characters and direction marks written out, cut if it is long.

    Names of tensors, classes and files come from anyone; as they are, they could move a terminal's
    cursor or turn a line around.

    Args:
        keep: control characters that stay, such as line breaks.
        most: characters that are left of a longer text.

    Example:
        >>> print(shown("conv\\x1b[2J.weight"))
        conv\\x1b[2J.weight
        >>> shown("a" * 60, most=8)
        'aaaa... (52 more) ...aaaa'
    """
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]}... ({len(text) - 2 * half:,} more) ...{text[-half:]}"
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if letter not in keep and unicodedata.category(letter) in _HIDDEN
        else letter
        for letter in text
    )
