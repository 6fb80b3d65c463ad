"""Whoever wants to know how a run goes: a terminal, TensorBoard, Weights & Biases."""

from typing import Any, Protocol


class Watcher(Protocol):
    """Told what happens; must not raise and must not change anything. Only the main process has one that speaks."""

    def note(self, text: str) -> None:
        """A line for people: what is trained, what was found, where something was written."""

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """A line of `metrics.jsonl`, and how many steps the whole run has."""


class Silent:
    """Nobody watches."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def record(self, record: dict[str, Any], total_steps: int) -> None:
        """Say nothing."""
