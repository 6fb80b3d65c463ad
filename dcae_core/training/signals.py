"""SIGTERM and Ctrl-C as a wish that the loop grants at the next good moment."""

import signal
import threading
from types import FrameType, TracebackType

from dcae_core.errors import DcaeError


class StoppedError(DcaeError):
    """The run was asked to stop, has saved, and can be continued. Its exit code is 128 + the signal's number."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignals:
    """While entered, the first SIGTERM or SIGINT is only remembered; a second one acts at once, as it would without.

    Attributes:
        received: the signal's number, or None so far.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        # Python hands signals to the main thread alone; a training in another thread is not stopped by them.
        mine = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._remember) for number in mine}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        for known, handler in self._before.items():
            signal.signal(known, handler)
