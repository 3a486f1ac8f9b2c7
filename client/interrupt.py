"""Ctrl-C that ends a long command for certain.

Python raises KeyboardInterrupt once, wherever the main thread is. Where that is a finalizer or a callback of C code, the exception is
printed and dropped, and the command goes on; where it is inside a lock of gRPC's client, closing the channel can wait for ever. So it is
raised again until the block is left.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["repeated_interrupt"]

REPEAT_S = 5.0  # cleaning up takes less


@contextlib.contextmanager
def repeated_interrupt() -> Iterator[None]:
    """Within the block, KeyboardInterrupt follows Ctrl-C at once, and again every five seconds until the block is left.

    Changes nothing on another thread than the main one, and where SIGINT is ignored or handled in another way.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    is_asked, is_left = False, False

    def repeat() -> None:
        time.sleep(REPEAT_S)
        while not is_left:
            _thread.interrupt_main()
            time.sleep(REPEAT_S)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if not is_asked:
            is_asked = True
            _thread.start_new_thread(repeat, ())  # threading's own would wait for a lock, which a handler must not
        if not is_left:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        is_left = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
