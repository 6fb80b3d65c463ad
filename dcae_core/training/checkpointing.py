"""The whole state of a training run on disk: weights as safetensors, everything else as plain tensors and JSON.

Nothing in a checkpoint is ever unpickled freely: optimiser and random states are read with `weights_only=True`.
`checksums.json` holds the SHA-256 of every other file; checkpoints written before there was one are read without.
"""

import json
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcae_core.checkpoints.training_runs import CHECKSUMS_NAME, STATE_NAME
from dcae_core.distributed import is_main
from dcae_core.errors import CheckpointError
from dcae_core.files import sha256_of_file
from dcae_core.training.parallel import spread_like, whole
from dcae_core.training.run_directory import read_state, refuse_checkpoint
from dcae_core.training.task import Progress, Task

DATA_KEY = "data"
_DAMAGE = (
    OSError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
)


def collect_checkpoint(
    task: Task, progress: Progress, scaler: torch.amp.GradScaler, data: dict[str, Any] | None = None
) -> "Checkpoint":
    """Everything that a run goes on from, as whole tensors. All processes must ask together.

    Costs, where the network is spread over processes, a whole copy in the memory of each machine's CPU.
    """
    tensors = {name: _gather(trained.network.state_dict()) for name, trained in task.networks.items()}
    if task.ema is not None:
        tensors["ema"] = _gather(task.ema.state_dict())
    optimisers = {name: _gather_optimiser(trained.optimiser) for name, trained in task.networks.items()}
    state = {
        "progress": asdict(progress),
        "ema_updates": task.ema.num_updates if task.ema is not None else None,
        "loss_scale": scaler.state_dict(),
        "torch": torch.__version__,
    }
    if data is not None:
        state[DATA_KEY] = data
    return Checkpoint(tensors, optimisers, _random_states(), state)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run, in memory."""

    tensors: dict[str, dict[str, Tensor]]
    optimisers: dict[str, dict[str, Any]]
    random: dict[str, Tensor]
    state: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Fill a directory, the checksums of all of it last."""
        for name, tensors in self.tensors.items():
            save_file(tensors, directory / f"{name}.safetensors")
        for name, optimiser in self.optimisers.items():
            torch.save(optimiser, directory / f"{name}.optimiser.pt")
        torch.save(self.random, directory / "random.pt")
        (directory / STATE_NAME).write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")
        checksums = {path.name: sha256_of_file(path) for path in sorted(directory.iterdir())}
        (directory / CHECKSUMS_NAME).write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")


def verify_checkpoint(directory: Path) -> None:
    """Compare every file with its checksum; a checkpoint without checksums was written before there were any.

    Raises:
        CheckpointError: a file is missing or is not what was written.
    """
    path = directory / CHECKSUMS_NAME
    with _explain_damage(directory):
        if not path.exists():
            return
        for name, checksum in json.loads(path.read_bytes()).items():
            if sha256_of_file(directory / Path(name).name) != checksum:
                raise refuse_checkpoint(directory, f"{name} is damaged, it is not what was written")


def read_checkpoint(directory: Path, task: Task, scaler: torch.amp.GradScaler) -> None:
    """Bring a task to the state that a checkpoint holds, or CheckpointError where it is damaged or does not fit."""
    state = read_state(directory)
    with _explain_damage(directory):
        for name, trained in task.networks.items():
            load_weights(trained.network, directory / f"{name}.safetensors")
            path = directory / f"{name}.optimiser.pt"
            with _explain_damage(path):
                saved = torch.load(path, map_location="cpu", weights_only=True)
                _load_optimiser(trained.optimiser, saved, path)
        if task.ema is not None:
            task.ema.load_state_dict(load_file(directory / "ema.safetensors"), int(state["ema_updates"]))
        _restore_random_states(torch.load(directory / "random.pt", map_location="cpu", weights_only=True))
        scaler.load_state_dict(state["loss_scale"])


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a network's weights and buffers, strictly, spread over processes as the network is."""
    with _explain_damage(path):
        present = network.state_dict()
        saved = load_file(path)
        network.load_state_dict(
            {name: spread_like(value, present[name]) if name in present else value for name, value in saved.items()},
            strict=True,
        )


@contextmanager
def _explain_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except _DAMAGE as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise refuse_checkpoint(path, text) from error


def _gather(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies on the CPU in the main process; the others only take part."""
    gathered = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if is_main():
            gathered[name] = complete.cpu().contiguous()
    return gathered


def _gather_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    state = optimiser.state_dict()
    entries = {index: _gather(entry) for index, entry in state["state"].items()}
    return {"state": entries, "param_groups": state["param_groups"]}


def _load_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """Take over the state of every parameter; learning rates, betas and the like are the recipe's, not the file's."""
    present = optimiser.state_dict()["param_groups"]
    if [len(group["params"]) for group in saved["param_groups"]] != [len(group["params"]) for group in present]:
        raise refuse_checkpoint(path, "it is the optimiser of other parameters")
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {}
    for index, entry in saved["state"].items():
        # What does not fit is found here: the fused step would read and write past the end of it.
        if not _fits(entry, parameters[index]):
            raise refuse_checkpoint(path, f"it holds other shapes than parameter {index} has")
        state[index] = {
            name: spread_like(value, parameters[index]) if value.ndim > 0 else value for name, value in entry.items()
        }
    optimiser.load_state_dict({"state": state, "param_groups": present})


def _fits(entry: dict[str, Tensor], parameter: Tensor) -> bool:
    moments = [entry["exp_avg"], entry["exp_avg_sq"]]
    return (
        entry.keys() == {"step", "exp_avg", "exp_avg_sq"}
        and entry["step"].ndim == 0
        and all(moment.shape == parameter.shape and moment.is_floating_point() for moment in moments)
    )


def read_progress(directory: Path) -> Progress:
    """How far the run was, once the whole checkpoint is found to be what was written.

    Raises:
        CheckpointError: a file of it is damaged.
    """
    verify_checkpoint(directory)
    with _explain_damage(directory / STATE_NAME):
        progress = Progress(**read_state(directory)["progress"])
        counts = (progress.phase, progress.phase_step, progress.step)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("it does not say how far the run was")
        return progress


def _random_states() -> dict[str, Tensor]:
    states: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
