"""A training run on the screen: loss, speed and time left."""

import sys
import time
from typing import Any

_SECONDS_BETWEEN_LINES = 5.0
_HIDDEN = ("images_per_second", "loader_images_per_second", "loader_wait", "seconds_left", "step", "phase")


class Display:
    """A `Watcher` that writes plain lines to standard error, at most one every few seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def note(self, text: str) -> None:
        """A line by itself."""
        print(text, file=sys.stderr, flush=True)

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """A line of figures, if it is time for one."""
        validation = any(name.startswith("validation.") for name in record)
        now = time.monotonic()
        if not validation and now - self._last < _SECONDS_BETWEEN_LINES and record["step"] != total_steps:
            return
        if not validation:
            self._last = now
        self.note(describe_record(record, total_steps))


def describe_record(record: dict[str, Any], total_steps: int) -> str:
    """One line of text for a line of `metrics.jsonl`."""
    figures = ", ".join(
        f"{name.removeprefix('autoencoder.')} {value:.4g}" for name, value in record.items() if name not in _HIDDEN
    )
    text = f"{record['phase']} {record['step']}/{total_steps}: {figures}"
    if "images_per_second" in record:
        left = time.strftime("%H:%M:%S", time.gmtime(record["seconds_left"]))
        text += (
            f"; {record['images_per_second']:.3g} images/s (loader {record['loader_images_per_second']:.3g}), "
            f"{left} left"
        )
    return text
