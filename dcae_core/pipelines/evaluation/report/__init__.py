"""One page to look at an evaluation with: no network, no script, readable on a phone and in the dark."""

from dcae_core.pipelines.evaluation.report.page import write_report

__all__ = ["write_report"]
