"""Any exception, put into words for the person at the terminal, with the exit code that goes with it."""

import errno

from typer.exceptions import TyperException

from dcae_core.errors import DataError, DcaeError, ResourceError, UsageError, is_out_of_memory, printable

_MAX_NAME = 1000  # letters of a path that is shown; longer ones are no paths
_OUT_OF_MEMORY = (
    "out of memory; take a smaller batch or image, --tile where the command has it, or --dtype bf16, "
    "or close other programs"
)

# What surrounds the program, and raises nothing of its own kind: exception, words in it, what to say, exit code.
_ENVIRONMENT: list[tuple[type[Exception], str, str, int]] = [
    (
        RuntimeError,
        "determine home directory",
        "there is no home directory; set HOME, or DCAE_CACHE and HF_HOME",
        ResourceError.exit_code,
    ),
    (
        RuntimeError,
        "can't start new thread",
        "no more threads may be started here; raise `ulimit -u` or take fewer workers",
        ResourceError.exit_code,
    ),
    (
        RuntimeError,
        "backend='inductor' raised",
        "torch.compile fails here (--debug tells why); set execution.compile to never",
        ResourceError.exit_code,
    ),
    (
        OSError,
        "Too many open files",
        "too many open files; raise `ulimit -n` or take fewer workers",
        ResourceError.exit_code,
    ),
    (
        FileNotFoundError,
        "[Errno 2] No such file or directory",
        "the working directory is gone; change to one that exists",
        ResourceError.exit_code,
    ),
    (
        ValueError,
        "embedded null",
        "a path holds a NUL character, which no file name may; take it out",
        UsageError.exit_code,
    ),
]


def describe_failure(error: Exception) -> tuple[str, int]:
    """What to print about `error` (without the leading `dcae: `), and the exit code to end with."""
    if isinstance(error, DcaeError):
        return str(error), error.exit_code
    if isinstance(error, TyperException):
        return _describe_usage(error), UsageError.exit_code
    if is_out_of_memory(error):
        return _OUT_OF_MEMORY, ResourceError.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f": could not write {printable(error.filename)}" if error.filename else ""
        return f"the disk is full{where}; free some room and run the command again", ResourceError.exit_code
    if isinstance(error, OSError) and error.filename is not None and error.errno != errno.EMFILE:
        return printable(f"{_shorten(str(error.filename))}: {error.strerror}"), DataError.exit_code
    text = printable(" ".join(str(error).split()))
    for kind, words, message, exit_code in _ENVIRONMENT:
        if isinstance(error, kind) and words in text:
            return message, exit_code
    return (
        f"unexpected {type(error).__name__}: {text}; this is a fault of dcae: run the command again with --debug "
        "and report what it prints"
    ), DcaeError.exit_code


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..."


def _describe_usage(error: TyperException) -> str:
    """One line for a fault in the command line; where something is missing, with the command's first example."""
    message = printable(" ".join(error.format_message().split()).rstrip("."))
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    program, option = context.find_root(), getattr(error, "option_name", None)
    if context is not program and any(option in parameter.opts for parameter in program.command.params):
        command = context.command_path.removeprefix(f"{program.info_name} ")
        return f"{option} stands before the command: {program.info_name} {option} {command} ..."
    if message.startswith("Missing"):
        for line in (context.command.help or "").splitlines():
            if line.strip().startswith("dcae "):
                return f"{message}; example: {line.strip()}"
    return f"{message}; see {context.command_path} --help"
