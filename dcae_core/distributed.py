"""The few calls to torch.distributed: who am I, wait for the others, add up, gather.

Every function also works in a single process that never heard of torch.distributed, and costs nothing there.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dcae_core.errors import DcaeError, LostProcessError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import Store

_TIMEOUT = timedelta(minutes=30)
_SECONDS_BETWEEN_LOOKS = 0.02
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")  # in what the backends raise

# Stops that reached this process, if the program keeps them here: a library may have swallowed the exception that one
# was meant to end with.
stops: list[int] = []

# Every group joined, to the end of the process: where the last reference is a data-parallel wrapper's, which an
# exception may keep until after the group, it is let go under Python's lock, and waits for a thread that wants that.
_groups: list[Any] = []


def act_on_stops() -> None:
    """Raise what ends this process, if a stop has reached it."""
    if stops:
        raise KeyboardInterrupt if stops[-1] == signal.SIGINT else SystemExit(128 + stops[-1])


def world_size() -> int:
    """How many processes work together; 1 without torchrun.

    Raises:
        UsageError: the environment says something else than a number.
    """
    return max(1, _number_of("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0.

    Raises:
        UsageError: the environment says something else than a number below `WORLD_SIZE`.
    """
    number = _number_of("RANK", 0)
    if world_size() > 1 and number >= world_size():
        raise UsageError(f"the environment variable RANK is {number} with WORLD_SIZE {world_size()}; unset both")
    return number


def local_world_size() -> int:
    """How many of the processes run on this machine."""
    return max(1, _number_of("LOCAL_WORLD_SIZE", 1))


def _number_of(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise UsageError(
            f"the environment variable {variable} is {text!r}, which is no number; unset it, or start with torchrun"
        )
    return int(text)


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def is_local_main() -> bool:
    """Whether this process is the first of its machine."""
    return _number_of("LOCAL_RANK", 0) == 0


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


def gather_bytes(content: bytes) -> list[bytes]:
    """`content` of every process, of whatever length, in the order of their ranks, in every process.

    As plain bytes: torch's own ways to gather objects unpickle, and so run, whatever comes in at the group's sockets.
    """
    if world_size() == 1:
        return [content]
    import torch
    import torch.distributed as dist

    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(content)]))
    padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
    padded.numpy()[: len(content)] = bytearray(content)
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded)
    return [part.numpy()[: int(length)].tobytes() for part, length in zip(received, lengths, strict=True)]


def gather_objects(value: Any) -> list[Any]:
    """`value` of every process, in the order of their ranks, in every process. For small things that JSON knows."""
    if world_size() == 1:
        return [value]
    return [json.loads(content) for content in gather_bytes(json.dumps(value).encode())]


def broadcast_object(value: Any) -> Any:
    """The main process's `value`, in every process. For small things that JSON knows."""
    return gather_objects(value if is_main() else None)[0]


def on_main(action: Callable[[], Any]) -> Any:
    """Do something in the main process; every process gets its result, which JSON has to know, or fails with it."""
    result, failure = None, None
    if is_main():
        try:
            result = action()
        except DcaeError as error:
            failure = error
    result, failed = broadcast_object((result, failure is not None))
    if failed:
        raise failure or LostProcessError("the first of the processes could not go on, and its message says why")
    return result


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process has ended while this one counted on it."""
    import torch.distributed as dist

    return world_size() > 1 and (isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST))


@contextmanager
def process_group(device: "torch.device") -> Iterator[None]:
    """Join the processes that torchrun started (its environment variables say which); nothing for a single process.

    CUDA tensors travel over NCCL and CPU tensors over gloo, in one group.
    """
    act_on_stops()
    if world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _explain_lost_process():
        _join(backends)
        _groups.append(dist.group.WORLD)
        try:
            yield
        finally:
            dist.destroy_process_group()


def _join(backends: str) -> None:
    """Form the group, in a thread: where another process ends meanwhile, the library waits long and deaf to signals."""
    import torch.distributed as dist

    failures: list[BaseException] = []

    def join() -> None:
        try:
            store = _rendezvous()
            dist.init_process_group(backends, store=store, rank=rank(), world_size=world_size(), timeout=_TIMEOUT)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=join, daemon=True, name="joining")
    thread.start()
    while thread.is_alive():
        act_on_stops()
        thread.join(_SECONDS_BETWEEN_LOOKS)
    for failure in failures:
        raise failure


def _rendezvous() -> "Store | None":
    """Where the processes of one launcher meet: a socket on loopback, bound before they started; otherwise None."""
    handle = os.environ.get("DCAE_RENDEZVOUS")
    if handle is None:
        return None
    import torch.distributed as dist

    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size(),
        is_master=rank() == 0,
        timeout=_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=int(handle) if rank() == 0 else None,
    )


@contextmanager
def _explain_lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if is_lost_process(error):
            raise LostProcessError(
                "another of the processes ended, and its message says why; the same command goes on from what is saved"
            ) from error
        raise


def _flag(condition: bool) -> "Tensor":
    import torch

    return torch.tensor([float(condition)])
