"""What can go wrong through no fault of the code, and the exit code each kind ends the command line with."""


class DcaeError(Exception):
    """An expected failure. Its message is one line: what is wrong, where, and what to do about it."""

    exit_code = 1


class UsageError(DcaeError):
    """Something asked for does not exist or cannot be combined: an unknown model, a bad option value."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has faults. The message lists all of them, one per line."""


class DataError(DcaeError):
    """Input that is missing, unreadable, damaged, or holds no image."""

    exit_code = 3


class CheckpointError(DataError):
    """Weights that are damaged, incomplete, or belong to another network."""


class ResourceError(DcaeError):
    """The device, the memory or the disk cannot do what was asked."""

    exit_code = 4


class DownloadError(DcaeError):
    """A file is not in the cache and could not be downloaded."""

    exit_code = 5
