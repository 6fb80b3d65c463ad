"""JSON that a stranger may have made: read, or refused in one line."""

import json
from typing import Any

from dcae_core.errors import DataError


def parse_json(content: bytes | str, where: str) -> Any:
    """The values of a JSON document; `where` names it in messages.

    DataError where it is not JSON, nested beyond what Python reads, or has a number of thousands of digits.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise DataError(f"{where} is not valid JSON: nested too deeply; restore or fetch it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where} is not valid JSON: {error}; restore or fetch it again") from error
    except ValueError as error:  # of integers beyond 4,300 digits
        raise DataError(f"{where} holds a number of thousands of digits; restore or fetch it again") from error
