"""The few calls to torch.distributed: who am I, wait for the others, add up, gather.

Every function also works in a single process that never heard of torch.distributed, and costs nothing there.
"""

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_TIMEOUT = timedelta(minutes=30)


def world_size() -> int:
    """How many processes work together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def is_local_main() -> bool:
    """Whether this process is the first of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        all_reduce_sum(_flag(False))


def all_reduce_sum(tensor: "Tensor") -> "Tensor":
    """Add up `tensor` over all processes, in place; return it. On the CPU or on the process group's device."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def any_process(condition: bool) -> bool:
    """Whether `condition` holds in at least one process. All processes must ask together."""
    return bool(all_reduce_sum(_flag(condition)).item()) if world_size() > 1 else condition


def gather_objects(value: Any) -> list[Any]:
    """`value` of every process, in the order of their ranks, in every process. For small things: it pickles."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """The main process's `value`, in every process. For small things: it pickles."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@contextmanager
def process_group(device: "torch.device") -> Iterator[None]:
    """Join the processes that torchrun started (its environment variables say which); nothing for a single process.

    CUDA tensors travel over NCCL and CPU tensors over gloo, in one group.
    """
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def launch(num_processes: int, argv: Sequence[str]) -> int:
    """Run `python -m dcae_cli argv...` in `num_processes` processes on this machine, as torchrun would.

    Returns the exit code of the first process that failed, or 0.
    """
    import signal
    import subprocess

    environment = dict(os.environ, WORLD_SIZE=str(num_processes), LOCAL_WORLD_SIZE=str(num_processes))
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    # Without a limit every process would start a thread per core and they would fight for them.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    command = [sys.executable, "-m", "dcae_cli", *argv]
    workers = [
        subprocess.Popen(command, env=environment | {"RANK": str(index), "LOCAL_RANK": str(index)})
        for index in range(num_processes)
    ]

    def pass_on(number: int, _frame: Any) -> None:
        for worker in workers:
            worker.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _wait_for_all(workers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_all(workers: list[Any]) -> int:
    """Wait for every process; once one has failed, end the others after a moment of grace."""
    import subprocess
    import time

    deadline: float | None = None
    while any(worker.poll() is None for worker in workers):
        failed = [worker for worker in workers if worker.returncode]
        if failed and deadline is None:
            deadline = time.monotonic() + 30.0
        if deadline is not None and time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
        try:
            next(worker for worker in workers if worker.returncode is None).wait(timeout=0.2)
        except (subprocess.TimeoutExpired, StopIteration):
            continue
    # A process that a lost partner brought down says less than the one that failed with a message of its own.
    codes = [worker.returncode for worker in workers]
    return next((code for code in codes if code > 0), next((128 - code for code in codes if code < 0), 0))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _flag(condition: bool) -> "Tensor":
    import torch

    return torch.tensor([float(condition)])
