"""Commands in several processes on this machine: one launcher starts them, owns every signal, and ends with them.

The workers run in sessions of their own, so that Ctrl-C and a closed terminal reach the launcher alone, which passes
each signal on once. Each worker's standard input is a pipe that only the launcher holds: it ends when the launcher
does, however that happens, on every system.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from dcae_core.distributed import act_on_stops, stops
from dcae_core.errors import DcaeError, ResourceError

LAUNCHED = "DCAE_LAUNCHED"  # set in a worker's environment
EXIT_LOST = 120  # a worker that lost its partners ends with it: whoever failed first has more to say

_STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
_SUSPENSIONS = [getattr(signal, name) for name in ("SIGTSTP",) if hasattr(signal, name)]
_SECONDS_AFTER_FAILURE = 30.0
_SECONDS_AFTER_STOP = 600.0  # the first process may still be writing a large checkpoint
_SECONDS_BETWEEN_LOOKS = 0.1


def start_processes(count: int) -> None:
    """Where `--nproc` asks for several processes, run this command in as many and end with their exit code.

    In those processes, under torchrun, and for a single one it does nothing: the command goes on.
    """
    from dcae_core.distributed import world_size

    if count > 1 and world_size() == 1:
        raise typer.Exit(_Launcher().run(count, sys.argv[1:]))


def handle_stops() -> None:
    """End on a stop with an exception, so that half-written files are removed on the way out; note it in `stops`.

    Training replaces these handlers by its own. Signals that arrived before are acted on now.
    """
    stops.clear()
    show_ignored = sys.unraisablehook

    def end(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        if _is_importing(frame):  # an exception may abort the process where compiled code imports
            _send_again(number)
        else:
            act_on_stops()

    def end_later(ignored: Any) -> None:
        """Where compiled code had called Python and drops the exception that it got back, stop once more."""
        if stops and isinstance(ignored.exc_value, KeyboardInterrupt | SystemExit):
            _send_again(stops[-1])
        else:
            show_ignored(ignored)

    sys.unraisablehook = end_later
    for number in _STOPS:
        # Under nohup SIGHUP is ignored, and shells let what they start in the background ignore Ctrl-C.
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    if LAUNCHED in os.environ:
        threading.Thread(target=_stop_with_launcher, daemon=True, name="launcher").start()
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _send_again(number: int) -> None:
    again = threading.Timer(_SECONDS_BETWEEN_LOOKS, _send_to_main_thread, (number,))
    again.daemon = True
    again.start()


def _stop_with_launcher() -> None:
    """Wait for the end of the pipe that the launcher holds, then do what SIGTERM would."""
    while os.read(0, 1):
        pass
    _send_to_main_thread(signal.SIGTERM)


def _send_to_main_thread(number: int) -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


class _Launcher:
    """Runs one command in several processes and passes on to them what it is sent."""

    def __init__(self) -> None:
        self._workers: list[subprocess.Popen[bytes]] = []
        self._stopped_by: int | None = None
        self._ended_first: dict[int, int] = {}

    def run(self, count: int, argv: Sequence[str]) -> int:
        """Run `python -m dcae_cli argv...` in `count` processes on this machine, as torchrun would.

        Returns:
            0, or the exit code of the process whose failure says most.

        Raises:
            ResourceError: a process was killed.
        """
        with self._signals_passed_on():
            self._start(count, argv)
            self._wait()
        return self._outcome()

    @contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        handled = [number for number in _STOPS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass_on) for number in handled}
        before |= {number: signal.signal(number, self._suspend) for number in _SUSPENSIONS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._stopped_by = number
        self._send(number)

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: stop the workers, then this process; whoever continues it continues them."""
        self._send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        if os.name != "posix" and number != signal.SIGTERM:
            return  # the console has sent Ctrl-C to the workers as well, and no other signal can be sent
        for worker in self._workers:
            worker.send_signal(number)

    def _start(self, count: int, argv: Sequence[str]) -> None:
        # Never the working directory on the path: a torch.py that lies there is somebody's file, not ours to run.
        command = [sys.executable, "-P", "-m", "dcae_cli", *argv]
        with socket.create_server(("127.0.0.1", 0)) as rendezvous, _stops_held_back():
            environment = _environment(count, rendezvous)
            for index in range(count):
                self._workers.append(
                    subprocess.Popen(
                        command,
                        env=environment | {"RANK": str(index), "LOCAL_RANK": str(index)},
                        stdin=subprocess.PIPE,
                        start_new_session=True,
                        pass_fds=[rendezvous.fileno()] if index == 0 and os.name == "posix" else (),
                    )
                )

    def _wait(self) -> None:
        """Wait for every process; once one has ended without the others, end those after a time of grace."""
        deadline: float | None = None
        while None in [worker.poll() for worker in self._workers]:
            if deadline is None and any(worker.returncode for worker in self._workers):
                self._ended_first = self._failures()
                deadline = time.monotonic() + (_SECONDS_AFTER_STOP if self._stopped_by else _SECONDS_AFTER_FAILURE)
            if deadline is not None and time.monotonic() > deadline:
                for worker in self._workers:
                    worker.kill()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._ended_first = self._ended_first or self._failures()  # all may end between two looks

    def _failures(self) -> dict[int, int]:
        return {i: worker.returncode for i, worker in enumerate(self._workers) if worker.returncode}

    def _outcome(self) -> int:
        codes = [worker.returncode for worker in self._workers]
        said = [code for code in codes if 0 < code != EXIT_LOST]
        failed = [code for code in said if code < 128]
        if failed or said:
            return (failed or said)[0]
        if self._stopped_by is not None and any(codes):
            return 128 + self._stopped_by
        for index, code in self._ended_first.items():
            if code < 0:
                raise _killed(index, -code)
        if any(codes):
            raise ResourceError("the processes lost each other; the same command goes on from what is saved")
        return 0


def _killed(index: int, number: int) -> DcaeError:
    name = signal.Signals(number).name
    if number == getattr(signal, "SIGKILL", None):
        return ResourceError(
            f"process {index} was killed ({name}), perhaps by the system for want of memory, and the others ended; "
            "take a smaller batch or fewer processes; the same command goes on from what is saved"
        )
    return DcaeError(
        f"process {index} was ended by {name}, and the others with it; the same command goes on from what is saved; "
        "should it happen again, report it"
    )


def _environment(count: int, rendezvous: socket.socket) -> dict[str, str]:
    environment = dict(os.environ, WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count))
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(rendezvous.getsockname()[1]), LAUNCHED: "1"}
    if os.name == "posix":
        environment["DCAE_RENDEZVOUS"] = str(rendezvous.fileno())
    # Without a limit every process would start a thread per core and they would fight for them.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        environment.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    package = str(Path(__file__).resolve().parents[1])
    if Path(package) == Path.cwd():  # run from a checkout: what the working directory gave this process
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), package]))
    return environment


@contextmanager
def _stops_held_back() -> Iterator[None]:
    """Within it, signals wait; processes started here act on theirs once they are ready to (`handle_stops`)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
