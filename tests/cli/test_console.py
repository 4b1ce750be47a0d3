"""Progress and errors, as a person at a terminal and a log file see them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from primesvt._progress import Stage
from primesvt.cli.console import Console, PlainProgress, duration
from primesvt.cli.tables import table


def test_an_error_is_one_line_whatever_its_text(capsys):
    Console().error("first [bold]line[/bold]\n  second line " + "x" * 200)
    line = capsys.readouterr().err
    assert line == f"primesvt: first [bold]line[/bold] second line {'x' * 200}\n"


def test_json_mode_prints_the_object_and_nothing_else(capsys):
    console = Console(as_json=True)
    console.line("for a person")
    console.say("for a person")
    console.result({"saving": 0.25})
    assert capsys.readouterr().out == '{\n  "saving": 0.25\n}\n'


def test_quick_work_prints_no_progress():
    stream, clock = io.StringIO(), iter([0.0, 0.5, 1.9])
    progress = PlainProgress(stream, clock=lambda: next(clock))
    for done in range(3):
        progress("probing", done, 3)
    assert stream.getvalue() == ""


def test_slow_work_prints_rate_and_remaining_time_now_and_then():
    stream, clock = io.StringIO(), iter(range(0, 40, 4))
    progress = PlainProgress(stream, clock=lambda: float(next(clock)))
    for done in range(6):
        progress("probing", done, 10)
    assert stream.getvalue().splitlines() == [
        "probing: 1 of 10, 4.0 s each, 36 s left",
        "probing: 4 of 10, 4.0 s each, 24 s left",
    ]


def test_resumed_work_is_not_counted_as_speed():
    stream, clock = io.StringIO(), iter([0.0, 10.0])
    progress = PlainProgress(stream, clock=lambda: next(clock))
    progress("probing", 90, 100)
    progress("probing", 95, 100)
    assert stream.getvalue() == "probing: 95 of 100, 0.5 per second, 10 s left\n"


def test_a_new_stage_starts_a_new_count():
    stream, clock = io.StringIO(), iter([0.0, 5.0, 5.0, 8.0])
    progress = PlainProgress(stream, clock=lambda: next(clock))
    progress("probing", 0, 10)
    progress("probing", 10, 10)
    progress("walk", 0, 4)
    progress("walk", 3, 0)
    assert stream.getvalue().splitlines() == [
        "probing: 10 of 10, 2 per second, 0 s left",
        "walk: 3, 1 per second",
    ]


def test_bars_on_a_terminal_show_rate_and_remaining_time():
    stream = io.StringIO()
    err = RichConsole(file=stream, force_terminal=True, width=80)
    with Console(err=err).progress() as progress:
        for done in range(5):
            progress("probing", done, 4)
    assert "probing" in stream.getvalue()
    assert "4/4" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7200, "2 h 0 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("command", "phrase"), [("prune", "goes on"), ("train", "goes on")])
def test_an_interrupt_is_one_line_and_130(primesvt, monkeypatch, command, phrase):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("primesvt.cli.app.parse", interrupt)
    finished = primesvt(command)
    assert finished.code == 130
    assert phrase in finished.err
    assert finished.err.count("\n") == 1


def test_what_is_known_beside_how_far_it_is_stands_at_the_end():
    stream, clock = io.StringIO(), iter([0.0, 5.0, 16.0])
    progress = PlainProgress(stream, clock=lambda: next(clock))
    for done, images in enumerate(("0", "4,500", "9,000")):
        progress(Stage("walk", detail=f"{images} images seen"), done, 4)
    assert stream.getvalue().splitlines() == [
        "walk: 1 of 4, 5.0 s each, 15 s left, 4,500 images seen",
        "walk: 2 of 4, 8.0 s each, 16 s left, 9,000 images seen",
    ]
    bars = io.StringIO()
    with Console(err=RichConsole(file=bars, force_terminal=True, width=100)).progress() as progress:
        for done in range(3):
            progress(Stage("walk", detail=f"{done} rejected early"), done, 2)
    assert "2 rejected early" in bars.getvalue()


def test_names_cannot_move_the_cursor_or_turn_a_line(capsys):
    bad = "a\x1b[2Jb\u202ec\ud800" + "x" * 9000
    console = Console()
    console.error(f"no {bad}")
    console.line(bad)
    console.sentence(bad)
    console.say(table([""], [[bad], ["[/bold]"]]))
    said = "".join(capsys.readouterr())
    assert "\\x1b[2Jb\\u202ec\\ud800" in said and "[/bold]" in said and "more) ..." in said
    assert not {"\x1b", "\u202e", "\ud800"} & set(said)


def test_progress_of_odd_names(capsys):
    stream = io.StringIO()
    progress = PlainProgress(stream, clock=iter([0.0, 4.0]).__next__)
    progress("a\x1b[2J", 0, 2)
    progress("a\x1b[2J", 1, 2)
    assert stream.getvalue().startswith("a\\x1b[2J: 1 of 2")
    console = Console(err=RichConsole(stderr=True, force_terminal=True))
    with console.progress() as bars:
        bars("[/bold]", 1, 2)
