"""What every command shares: an interrupt ends it, wherever it lands."""

import gc
import signal
import sys
import time

from absl import flags
import pytest

from mean_jax.cli import common

SIGNALS = {signal.SIGINT: "interrupted\n", signal.SIGTERM: ""}


class Deleted:
    """Receives a signal, or fails, while it is deleted."""

    def __init__(self, number=None):
        self._number = number

    def __del__(self):
        if self._number is None:
            raise ValueError("while deleted")
        signal.raise_signal(self._number)


def in_a_deletion(number):
    Deleted(number)


def in_a_collection(number):
    def callback(phase, _):
        if phase == "stop":
            signal.raise_signal(number)

    gc.callbacks.append(callback)
    try:
        gc.collect(0)
    finally:
        gc.callbacks.remove(callback)


def repeatedly(number):
    """The repeated interrupt is lost as well."""
    before = signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, lambda *_: (signal.signal(signal.SIGALRM, before), Deleted(number)))
    Deleted(number)


@pytest.fixture
def run(call):
    """Returns a function that runs a function as a command in this process, as `call` does."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    hook = sys.unraisablehook
    yield lambda main: call(lambda: common.run(main, flag_values=flags.FlagValues()))
    assert sys.unraisablehook is hook
    assert signal.getsignal(signal.SIGALRM) is before[signal.SIGALRM]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("interrupt", [in_a_deletion, in_a_collection, repeatedly])
def test_an_interrupt_that_python_would_ignore_ends_the_command(run, interrupt, number):
    def main():
        interrupt(number)
        time.sleep(1)

    assert run(main) == (128 + number, SIGNALS[number])


def test_other_errors_in_a_deletion_are_reported_as_ever(run, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(str(unraisable.exc_value)))

    def main():
        Deleted()

    hook = sys.unraisablehook
    assert run(main) == (0, "")
    assert reported == ["while deleted"]
    assert sys.unraisablehook is hook
    monkeypatch.undo()
