"""Ctrl-C and SIGTERM as a wish to stop at a good moment; a second one stops at once."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any


class Stop:
    """Within `with Stop() as stop`, `stop.signal` is the number of the signal that asked to stop, 0 before.

    While `stop.busy` the caller is to look at it and stop in good time; else, and for a second signal,
    KeyboardInterrupt is raised at once. In another thread than the main one nothing is ever asked.
    """

    def __init__(self) -> None:
        self.signal, self.busy = 0, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        at_once, self.signal = bool(self.signal) or not self.busy, number
        if at_once:
            raise KeyboardInterrupt
        with suppress(OSError):  # print is not for a handler: it may have interrupted another
            os.write(2, b"\nmicroumup: stopping after a checkpoint; once more stops at once\n")
