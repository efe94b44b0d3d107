"""Makes Ctrl-C reliable while the command line waits for the agent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from threading import Thread, get_ident
from typing import Final

# After Ctrl-C, a thread sends the signal SIGURG three times, because a signal has no effect if a
# blocking call begins just after the signal. Each number is the wait before one signal, in seconds.
_WAITS: Final = (0.05, 0.2, 1.0)


@contextmanager
def waking_on_ctrl_c() -> Generator[None, None, None]:
    """In the `with` block, ensure that Ctrl-C ends a blocking call in the main thread.

    If Ctrl-C is pressed just before a system call starts, Python handles it only after the call.
    Therefore, another thread interrupts the call with the signal SIGURG, whose handler does
    nothing.

    Do not call `input` in the block: two signals at once can cause a `SystemError` in `input`.
    """
    main, (reader, writer) = get_ident(), os.pipe()
    os.set_blocking(writer, False)

    def wake() -> None:
        with open(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] == signal.SIGINT:
                    for seconds in _WAITS:
                        time.sleep(seconds)
                        signal.pthread_kill(main, signal.SIGURG)

    handler = signal.signal(signal.SIGURG, _ignore)
    # When the process receives a signal, Python writes the signal's number to `writer`. The thread
    # below reads the number.
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    Thread(target=wake, name="flux0-ctrl-c", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        signal.signal(signal.SIGURG, handler)


def _ignore(_number: int, _frame: object) -> None: ...
