"""What somebody who waits sees: bars on a terminal, a few lines in a log file, and one estimate."""

import io
import sys
import time
import types

from ensdiff import hosts, terminal


def terminal_of(monkeypatch):
    """Return the text of a terminal that stderr is from now on."""
    text = io.StringIO()
    text.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", text)
    return text


def until(condition):
    """Wait until a thread has done something."""
    deadline = time.monotonic() + 60  # a loaded machine may start a thread late
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_clock_runs_while_the_first_unit_compiles(monkeypatch):
    screen = terminal_of(monkeypatch)
    monkeypatch.setattr(terminal, "TICK", 0.02)
    with hosts.progress_bar(3, "train", "step", shown=True, first="compiling") as bar:
        until(lambda: screen.getvalue().count("train, compiling: ") >= 4)
        assert "train: " not in screen.getvalue()
        bar.update()
        ticks = screen.getvalue().count("compiling")
        bar.refresh()
        assert "train:  33%" in screen.getvalue()
        time.sleep(0.1)
        assert screen.getvalue().count("compiling") == ticks


def test_a_log_file_gets_one_line_and_only_if_it_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_MENTIONED", set())
    said = []
    monkeypatch.setattr(terminal, "say", said.append)
    with hosts.progress_bar(2, "train", "step", shown=True, first="compiling") as bar:
        bar.update(2)
    monkeypatch.setattr(terminal, "QUIET", 0.01)
    for _ in range(2):  # the second one is not compiled again
        with hosts.progress_bar(2, "train", "step", shown=True, first="compiling"):
            until(lambda: said)
            time.sleep(0.05)
    with (
        hosts.progress_bar(2, "other", "step", shown=False, first="compiling"),
        hosts.progress_bar(2, "x", "y", shown=True),
    ):
        time.sleep(0.05)
    assert said == ["train: compiling..."]
    assert capsys.readouterr().err == ""


def test_a_log_file_says_now_and_then_how_far_it_is(monkeypatch):
    """At most a line a minute, of any loop; what the first unit took, which compiles, is not part of the rate."""
    said, now = [], [0.0]
    monkeypatch.setattr(terminal, "say", said.append)
    monkeypatch.setattr(terminal, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with (
        hosts.progress_bar(1200, "train", "step", shown=True, done=1000) as bar,
        hosts.progress_bar(None, "score", "unit", shown=True) as unknown,
        hosts.progress_bar(9, "other", "step", shown=False) as hidden,
    ):
        for seconds in (30.0, 59.0, 70.0, 129.0, 131.0):  # the first step of the loop ends at 30 seconds
            now[0] = seconds
            bar.update(20)
            unknown.update(1)
            hidden.update(1)
    assert said == [
        "train: 1,060 of 1,200 steps after 01:10, about 02:20 left",
        "score: 3 units after 01:10",
        "train: 1,100 of 1,200 steps after 02:11, about 02:06 left",
        "score: 5 units after 02:11",
    ]


def test_a_notebook_is_a_shell_with_a_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    for shell, found in ((None, False), (types.SimpleNamespace(), False), (types.SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert terminal.interactive() == found


def clock(*times):
    return iter(times).__next__


def test_an_estimate_is_of_what_was_measured_after_the_first_unit(monkeypatch):
    monkeypatch.setattr(terminal.os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    estimate = terminal.Estimate(1000, "step", clock(100.0, 104.0, 110.0))
    assert [estimate.after(done) for done in (1, 41)] == [None, None]  # 100 s of compilation; 4 s are too few
    assert estimate.after(101) == "about 01:29 for the other 899 of 1,000 steps, at 10 steps per second"
    assert estimate.after(900) is None  # once


def test_an_estimate_on_a_busy_machine_says_so(monkeypatch):
    monkeypatch.setattr(terminal.os, "getloadavg", lambda: (70.0, 1.0, 1.0))
    monkeypatch.setattr(terminal.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    estimate = terminal.Estimate(50, "step", clock(0.0, 20.0))
    estimate.after(8)
    assert estimate.after(18) == (
        "about 01:04 for the other 32 of 50 steps, at 2 seconds per step; the machine is busy (load 70.0 on 2 cores), "
        "and faster when it is not"
    )


def test_little_work_gets_no_estimate():
    estimate = terminal.Estimate(50, "step", clock(0.0, 20.0, 30.0))
    assert [estimate.after(done) for done in (1, 41, 45)] == [None, None, None]
