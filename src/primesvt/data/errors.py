"""The error of data that cannot be used."""

from __future__ import annotations

__all__ = ["DataError"]


class DataError(ValueError):
    """Raised for data that cannot be used, with the reason in one line.

    A loader's worker process wraps an error's text into its own traceback; of such a text only the
    last line is kept, which is the sentence that was raised.

    Example:
        >>> str(DataError("Caught in worker 0.\\nTraceback\\nm.DataError: cat.png is empty"))
        'cat.png is empty'
    """

    def __init__(self, message: str) -> None:
        last = message.strip().splitlines()[-1]
        super().__init__(last.split(f"{type(self).__name__}: ", maxsplit=1)[-1])
