"""What can go wrong through no fault of the code: the kinds, their exit codes, and the words that they share."""

import difflib
import unicodedata
from collections.abc import Iterable

_ESCAPED_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of pairs, line and paragraph breaks
_TURNS_WRITING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SHORT_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNDECODABLE = range(0xDC80, 0xDD00)  # bytes of file names that are not UTF-8, as Python holds them


def printable(text: object) -> str:
    """What may stand on a screen, in a report or a log for a name that a stranger gave: one line without commands.

    Newlines, control characters (escape codes of terminals among them), marks that turn the direction of writing and
    bytes that are not UTF-8 are shown escaped; everything else stays as it is.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(_escape(letter) for letter in text)


def _escape(letter: str) -> str:
    if unicodedata.category(letter) not in _ESCAPED_CATEGORIES and letter not in _TURNS_WRITING:
        return letter
    if letter in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[letter]
    code = ord(letter)
    if code in _UNDECODABLE:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class DcaeError(Exception):
    """An expected failure. Its message is one line: what is wrong, where, and what to do about it.

    Whatever names the message holds, it stays one line that is safe to print.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class UsageError(DcaeError):
    """Something asked for does not exist or cannot be combined: an unknown model, a bad option value."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has faults. The message lists them, one per line."""

    def __init__(self, message: object = "") -> None:
        super().__init__()
        self.args = ("\n".join(map(printable, str(message).split("\n"))),)


class DataError(DcaeError):
    """Input that is missing, unreadable, damaged, or holds no image."""

    exit_code = 3


class SourceLostError(DataError):
    """All images of a place have gone: no damage, which a command may pass over, but a reason to stop."""


class CheckpointError(DataError):
    """Weights that are damaged, incomplete, or belong to another network."""


class ResourceError(DcaeError):
    """The device, the memory or the disk cannot do what was asked."""

    exit_code = 4


class LostProcessError(ResourceError):
    """One of several processes that work together ended without the others."""


class DownloadError(DcaeError):
    """A file is not in the cache and could not be downloaded."""

    exit_code = 5


class UploadError(DcaeError):
    """The hub did not take what was sent to it."""

    exit_code = 5


_FEW_NAMES = 6


def near_names(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Up to three names that one was likely meant to be, the nearest first; `cutoff`: how alike they must be, 0..1.

    Where none is so alike, those that hold it as a part: `tiny` of `dc-ae-f32c32-tiny-1.0`.
    """
    known = list(known)
    alike = difflib.get_close_matches(name, known, n=3, cutoff=cutoff)
    return alike or [each for each in known if len(name) > 2 and name.lower() in each.lower()][:3]


def did_you_mean(near: Iterable[object], otherwise: str) -> str:
    """The end of a message about a name that is not known: the near ones, or what to do where there are none."""
    near = list(near)
    return f"did you mean {' or '.join(map(str, near))}?" if near else otherwise


def unknown_name(what: str, name: object, known: Iterable[str]) -> UsageError:
    """The error for a name that is none of those `known`, with the nearest, and with all where they are few.

    `what` is the kind of thing, such as "sampler"; `name` may be of any type, as it may come from a file.
    """
    known = list(known)
    near, choice = near_names(str(name), known), f"choose from {', '.join(known)}"
    hint = did_you_mean(near, choice)
    return UsageError(f"unknown {what} {name!r}; {hint}" + (f" {choice}" if near and len(known) <= _FEW_NAMES else ""))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or a device had no memory left; torch says so in several ways."""
    computing = ("out of memory", "can't allocate memory", "not enough memory", "storage size calculation overflowed")
    loading = ("failed to map segment", "cannot allocate memory")  # a library
    said = str(error).lower() if isinstance(error, RuntimeError | ImportError) else ""
    return isinstance(error, MemoryError) or any(word in said for word in computing + loading)


_REASONS = (
    (("offlinemode", "hf_hub_offline"), "HF_HUB_OFFLINE is set"),
    (("proxy",), "the proxy that HTTPS_PROXY names cannot be reached"),
    (
        ("gaierror", "getaddrinfo", "name resolution", "name or service not known", "nodename nor servname"),
        "the server's name cannot be resolved (DNS): there is no network here",
    ),
    (("certificate", "ssl"), "the server's certificate is not trusted here"),
    (("timeout", "timed out"), "the server does not answer in time"),
    (("refused",), "the connection is refused"),
    (("unreachable", "no route"), "the network cannot be reached"),
)


def explain_network_failure(error: BaseException) -> str:
    """Why a download or an upload failed, in a few words, from what the network stack raised and its causes."""
    status = http_status(error)
    if status in (401, 403):
        return f"the server refuses access ({status})"
    if status == 407:
        return "the proxy asks for a login (407): put it into HTTPS_PROXY"
    if status is not None:
        return f"the server answers {status}"
    text = " ".join(f"{type(each).__name__} {each}" for each in _behind(error)).lower()
    return next((words for marks, words in _REASONS if any(mark in text for mark in marks)), type(error).__name__)


def http_status(error: BaseException) -> int | None:
    """What a server answered, where huggingface_hub or urllib says it of an error or of what lies behind that."""
    for each in _behind(error):
        status = getattr(getattr(each, "response", None), "status_code", None) or getattr(each, "code", None)
        if isinstance(status, int):
            return status
    return None


def _behind(error: BaseException) -> list[BaseException]:
    """The error, its cause, the cause of that, ..."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found
