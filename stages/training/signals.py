"""Stopping in good order: a signal only asks for it, and loader workers leave it to their parent."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Within it the first SIGTERM or SIGINT only sets the event; a second one acts as before."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        stopped.set()
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        restore()


def leave_to_parent(_worker: int) -> None:
    """For loader workers: Ctrl-C, `timeout` and batch systems signal the whole group, but only the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
