"""A change of the whole process is made once, and taken back when nobody needs it any more."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from primesvt._switches import Switched


def test_threads_that_come_and_go_leave_the_setting_as_it_was() -> None:
    setting, made = ["as it was"], []

    @contextmanager
    def change() -> Iterator[None]:
        found, setting[0] = setting[0], "changed"
        made.append(found)
        try:
            yield
        finally:
            setting[0] = found

    switched = Switched(change)

    def use(depth: int) -> None:
        with switched.on():
            assert setting == ["changed"]
            if depth:
                use(depth - 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, [3] * 200))
    assert setting == ["as it was"] == made[:1]
    assert set(made) == {"as it was"}


def test_a_change_that_fails_or_a_use_that_fails_leaves_nothing() -> None:
    entered = []

    @contextmanager
    def change() -> Iterator[None]:
        if not entered:
            entered.append("failed")
            raise OSError("cannot")
        entered.append("in")
        yield
        entered.append("out")

    switched = Switched(change)
    with pytest.raises(OSError, match="cannot"), switched.on():
        pass
    with pytest.raises(KeyError), switched.on():
        raise KeyError
    with switched.on():
        pass
    assert entered == ["failed", "in", "out", "in", "out"]
