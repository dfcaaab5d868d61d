"""No signal is lost, and signals are handled only while a command runs."""

import os
import signal

import pytest

from egoaudio.system import signals


@pytest.mark.parametrize("number, exit_code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_raises_where_the_program_is(number, exit_code):
    with pytest.raises(signals.Interrupted) as raised, signals.listening():
        os.kill(os.getpid(), number)
    assert raised.value.exit_code == exit_code


def test_a_signal_whose_exception_is_lost_is_raised_by_the_next_check():
    with signals.listening():
        signals.check()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except signals.Interrupted:
            pass  # as Python does in a finaliser
        with pytest.raises(signals.Interrupted):
            signals.check()


def test_afterwards_the_handlers_are_those_of_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with signals.listening():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
