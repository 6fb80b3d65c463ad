"""The frame around every command: help, unknown names, exit codes, tracebacks, signals, pipes."""

import contextlib
import errno
import importlib
import json
import resource
import signal
import subprocess
import sys
import time

import pytest

import dcae_cli.info
from dcae_cli.app import COMMANDS, load_command
from dcae_cli.failures import describe_failure
from dcae_core.devices import ProcessorFamily
from dcae_core.errors import CheckpointError, DcaeError, DownloadError, RecipeError, ResourceError, UsageError

MAX_HELP_SECONDS = 0.3
HEAVY_PACKAGES = ("torch", "numpy", "scipy", "PIL", "rich", "huggingface_hub", "safetensors", "yaml")


def shell(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dcae_cli", *arguments], capture_output=True, text=True, timeout=120, **options
    )


@pytest.fixture
def failing_info(dcae, monkeypatch):
    """Run `dcae info` while it raises `error`."""

    def run(error: BaseException, *arguments: str):
        def fail() -> None:
            raise error

        monkeypatch.setattr("dcae_cli.info.gather_facts", fail)
        return dcae(*(arguments or ("info",)))

    return run


def test_help_takes_less_than_a_third_of_a_second() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Commands:" in shell("--help").stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time and the best of a few, so that a busy machine does not fail the test.
    assert min(seconds() for _ in range(5)) < MAX_HELP_SECONDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy_and_shows_a_whole_example(command: str) -> None:
    script = (
        "import sys, dcae_cli.__main__ as program\n"
        f"program._run([{command!r}, '--help'])\n"
        f"print('HEAVY', [name for name in {HEAVY_PACKAGES} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.rstrip().endswith("HEAVY []")
    assert f"dcae {command}" in run.stdout.partition("\n")[2], "no whole example in the help text"
    assert "--debug" in run.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_line(command: str) -> None:
    commands = [load_command(command)]
    commands += getattr(commands[0], "commands", {}).values()
    for each in commands:
        for parameter in each.params:
            assert parameter.param_type_name != "option" or parameter.help, f"{each.name} {parameter.opts}"


def options_of(command: str) -> list[tuple[str, set[str]]]:
    """The command, and each of its subcommands, with the options it takes."""
    commands = [load_command(command)]
    commands += getattr(commands[0], "commands", {}).values()
    return [(each.name, {option for parameter in each.params for option in parameter.opts}) for each in commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_json_and_tracebacks_when_asked(command: str) -> None:
    for name, options in options_of(command):
        assert {"--debug"} <= options, name
        assert {"--json"} <= options or name == "schema", name  # a schema is JSON anyway


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"models", "recipes", "convert", "push", "info", "latents"}))
def test_every_command_that_computes_takes_a_device_and_a_number_type(command: str) -> None:
    for name, options in options_of(command):
        assert {"--device", "--dtype"} <= options, name


def test_without_arguments_the_help_is_shown(dcae) -> None:
    run = dcae()
    run.assert_succeeds()
    assert all(name in run.stdout for name in COMMANDS)


def test_unknown_command_names_the_nearest(dcae) -> None:
    dcae("inof").assert_fails(2, "unknown command 'inof'", "did you mean info?")
    dcae("zzzz").assert_fails(2, "choose from", "info")


def test_unknown_option_names_the_nearest_and_the_help(dcae) -> None:
    dcae("info", "--jsno").assert_fails(2, "--jsno", "--json", "dcae info --help")
    dcae("--wrong").assert_fails(2, "--wrong", "dcae --help")


def test_surplus_argument_is_refused(dcae) -> None:
    dcae("info", "everything").assert_fails(2, "everything", "dcae info --help")


def test_info_as_json_has_what_a_bug_report_needs(dcae) -> None:
    run = dcae("info", "--json")
    run.assert_succeeds()
    facts = json.loads(run.stdout)
    assert facts["versions"]["torch"] == __import__("torch").__version__
    assert facts["devices"][0]["name"] == "cpu"
    assert facts["threads"] >= 1
    assert facts["embedded_model"]["bytes"] > 1_000_000


@pytest.mark.parametrize(
    ("family", "said"),
    [(("AMD", "AVX-512"), ("AMD AVX-512", "1024 channels", "Zen 5")), (("", ""), ("unknown", "plain everywhere"))],
)
def test_info_says_which_convolutions_go_which_way_here_and_why(family, said, dcae, monkeypatch) -> None:
    monkeypatch.setattr("dcae_core.devices.processor_family", lambda: ProcessorFamily(*family))
    facts = json.loads(dcae("info", "--json").stdout)["convolutions"]
    assert set(facts) == {"processor", "rule"}
    shown = " ".join(dcae("info").stdout.split())
    for words in said:
        assert words in f"{facts['processor']}: {facts['rule']}"
        assert words in shown


def test_info_measures_the_cache_without_counting_links_twice(dcae, tmp_path, monkeypatch) -> None:
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert json.loads(dcae("info", "--json").stdout)["cache"] == {"path": str(tmp_path), "bytes": 1000}


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (UsageError("no such thing"), 2),
        (RecipeError("no such thing"), 2),
        (CheckpointError("no such thing"), 3),
        (ResourceError("no such thing"), 4),
        (DownloadError("no such thing"), 5),
        (MemoryError(), 4),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 4),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 3),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"), 4),
        (RuntimeError("a fault\nof ours"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_failure_is_one_line_and_its_exit_code(failing_info, error, exit_code) -> None:
    import torch  # noqa: F401  what runs out of memory has imported it

    failing_info(error).assert_fails(exit_code)


@pytest.mark.parametrize("arguments", [("--debug", "info"), ("info", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(failing_info, arguments) -> None:
    run = failing_info(DcaeError("no such thing"), *arguments)
    assert run.exit_code == 1
    assert "Traceback" in run.stderr
    assert run.stderr.endswith("dcae: no such thing\n")


def test_of_several_processes_one_tells_what_all_must_see(failing_info, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "3")
    run = failing_info(UsageError("no such thing"))
    assert (run.exit_code, run.stderr) == (2, "")
    run = failing_info(ResourceError("no such thing"))
    assert (run.exit_code, run.stderr) == (4, "dcae: process 3: no such thing\n")


def test_an_unexpected_failure_asks_for_debug() -> None:
    message, exit_code = describe_failure(ZeroDivisionError("division by zero"))
    assert exit_code == 1
    assert "--debug" in message
    assert "ZeroDivisionError: division by zero" in message


def test_out_of_memory_on_a_gpu_is_told_as_such() -> None:
    import torch

    assert describe_failure(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))[1] == 4


def test_a_closed_pipe_ends_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "dcae_cli", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


def test_it_runs_without_any_standard_streams() -> None:
    assert subprocess.run(["sh", "-c", f"{sys.executable} -m dcae_cli --version <&- >&- 2>&-"]).returncode == 0


def test_a_full_disk_under_the_output_is_told() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "dcae_cli", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert run.returncode == 4
    assert run.stderr == "dcae: the disk is full; free some room and run the command again\n"


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_with_their_exit_code_and_no_traceback(number, exit_code) -> None:
    script = (
        "import signal, sys, time, dcae_cli.info, dcae_cli.__main__ as program\n"
        # Whatever started the tests may ignore Ctrl-C, as shells do for what runs in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait():\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "dcae_cli.info.gather_facts = wait\n"
        "sys.argv = ['dcae', 'info']\n"
        "program.main()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(number)
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == exit_code
    assert b"Traceback" not in stderr


def test_a_stop_that_a_library_swallows_still_counts(dcae, monkeypatch) -> None:
    def swallow() -> None:
        with contextlib.suppress(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr("dcae_cli.info.gather_facts", swallow)
    run = dcae("info")
    assert (run.exit_code, run.stderr) == (143, "")


class Callback:
    """Compiled code calls its end, and cannot pass on what that raises."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_in_a_callback_from_compiled_code_comes_again(number, exit_code, dcae, monkeypatch) -> None:
    gather_facts = dcae_cli.info.gather_facts

    def swallow() -> dict:
        Callback(number)
        time.sleep(2)
        return gather_facts()

    monkeypatch.setattr("dcae_cli.info.gather_facts", swallow)
    run = dcae("info")
    assert (run.exit_code, "ignored" in run.stderr) == (exit_code, False)


def test_a_stop_waits_for_the_end_of_an_import(dcae, monkeypatch, tmp_path) -> None:
    text = "import signal\nsignal.raise_signal(signal.SIGINT)\nopen('imported', 'w')\n"
    (tmp_path / "stopped_within.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    gather_facts = dcae_cli.info.gather_facts

    def import_it() -> dict:
        importlib.import_module("stopped_within")
        time.sleep(2)
        return gather_facts()

    monkeypatch.setattr("dcae_cli.info.gather_facts", import_it)
    assert dcae("info").exit_code == 130
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize("arguments", [("-h",), ("info", "-h"), ("models", "list", "-h")])
def test_h_is_help(dcae, arguments) -> None:
    run = dcae(*arguments)
    run.assert_succeeds()
    assert run.stdout.startswith("Usage: ")


def test_v_is_the_version(dcae) -> None:
    assert dcae("-V").stdout == dcae("--version").stdout
