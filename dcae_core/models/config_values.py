"""What every network's configuration asks of its values, which may come from a file that cannot be trusted."""

from collections.abc import Collection
from numbers import Integral

from dcae_core.errors import UsageError

# Far beyond any network, and small enough for one to be laid out without memory before its weights are looked at.
MAX_CHANNELS = 1 << 16
MAX_BLOCKS = 1 << 10
MAX_WEIGHTS = 1 << 36  # values: 275 GB in float32


def _show(value: object) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # a number of thousands of digits
        return "so large a number"


def require_count(what: str, value: object, low: int, high: int) -> None:
    """Refuse, with UsageError, what is no whole number in low..high; True and False are none."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise UsageError(f"{what} must be a whole number from {low} to {high}, not {str(value)[:60]}")


def require_counts(what: str, values: object, low: int, high: int) -> None:
    """Refuse, with UsageError, what is no tuple of whole numbers in low..high."""
    if not isinstance(values, tuple):
        raise UsageError(f"{what} must be a list of whole numbers, not {values!r}")
    for value in values:
        require_count(what, value, low, high)


def require_choice(what: str, value: object, choices: Collection[object]) -> None:
    """Refuse, with UsageError, what is none of `choices`."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise UsageError(f"{what}: {value!r} is not one of {', '.join(map(str, choices))}")


def require_size(what: str, num_blocks: int, num_weights: int) -> None:
    """Refuse a network that is too large to be built, counted from its description alone.

    Raises:
        UsageError: it is.
    """
    if num_blocks > MAX_BLOCKS:
        raise UsageError(f"{what} has {num_blocks:,} blocks, more than the limit of {MAX_BLOCKS:,}")
    if num_weights > MAX_WEIGHTS:
        raise UsageError(f"{what} has about {num_weights:.1e} weights, more than the limit of {MAX_WEIGHTS:.1e}")
