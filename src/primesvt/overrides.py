"""Settings of a model as words, in a recipe or on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["parse_overrides"]

_WORDS = {"true": True, "false": False, "none": None}


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as settings; a word of another form raises ``ValueError``.

    Example:
        >>> parse_overrides(["tau=1.5", "num_heads=1,4,8", "dvs_mode=true", "pooling_stat=0011"])
        {'tau': 1.5, 'num_heads': (1, 4, 8), 'dvs_mode': True, 'pooling_stat': '0011'}
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise ValueError(f"--override {word!r} is no NAME=VALUE, such as num_heads=12")
        if name in settings:
            raise ValueError(f"--override gives {name} twice")
        settings[name.replace("-", "_")] = _value(text)
    return settings


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    # A leading zero is part of a text such as 0011, never of a number.
    if re.fullmatch(r"-?(0|[1-9]\d*)", text):
        return int(text)
    if re.fullmatch(r"-?(0|[1-9]\d*)?\.\d+|-?\d+(\.\d*)?[eE][-+]?\d+", text):
        return float(text)
    return text
