"""Measured figures beside published ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcae_core.pipelines.evaluation.scores import METRICS
from dcae_core.recipes.evaluate import Expectation

if TYPE_CHECKING:
    from dcae_core.pipelines.evaluate import Evaluation

_LATENT_LABELS = {"latent_mean": "latent mean", "latent_rms": "latent rms", "latent_std": "latent std"}


@dataclass(frozen=True)
class Comparison:
    """One figure: measured, expected, and whether they agree.

    Attributes:
        name: key of the score.
        label: for people.
        measured: the figure; None where a figure is expected but was not measured.
        spread: its standard deviation, where there is one.
        num_pictures: that it is over.
        expected: the published figure, where there is one.
    """

    name: str
    label: str
    measured: float | None
    spread: float | None
    num_pictures: int
    expected: Expectation | None

    @property
    def verdict(self) -> str:
        """In one word; empty where nothing is expected."""
        if self.expected is None:
            return ""
        if self.measured is None:
            return "not measured"
        return "same" if abs(self.measured - self.expected.value) <= self.expected.tolerance else "differs"

    @property
    def measured_text(self) -> str:
        """To four decimals, or a dash."""
        return "-" if self.measured is None else f"{self.measured:.4f}"

    @property
    def spread_text(self) -> str:
        """To four decimals, or nothing."""
        return "" if self.spread is None else f"± {self.spread:.4f}"

    @property
    def expected_text(self) -> str:
        """The figure and its tolerance, or nothing."""
        return "" if self.expected is None else f"{self.expected.value:g} ± {self.expected.tolerance:g}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        assert self.expected is not None
        return self.expected.model_dump() | {"measured": self.measured, "verdict": self.verdict}


def compare(evaluation: "Evaluation", expected: Mapping[str, Expectation]) -> list[Comparison]:
    """Every measured figure, then those that are expected and were not measured."""
    spreads = {score.name: score.spread for score in evaluation.scores}
    measured = evaluation.measured()
    names = [*measured, *(name for name in expected if name not in measured)]
    return [
        Comparison(
            name=name,
            label=_LATENT_LABELS.get(name) or METRICS[name].label,
            measured=measured.get(name),
            spread=spreads.get(name),
            num_pictures=evaluation.num_pictures,
            expected=expected.get(name),
        )
        for name in names
    ]
