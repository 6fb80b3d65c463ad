"""The whole state of a training run on disk: weights as safetensors, everything else as plain tensors and JSON.

Nothing in a checkpoint is ever unpickled freely: optimiser and random states are read with `weights_only=True`.
"""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dcae_core.distributed import is_main
from dcae_core.errors import CheckpointError
from dcae_core.training.parallel import spread_like, whole
from dcae_core.training.run_directory import STATE_NAME, read_state
from dcae_core.training.task import Progress, Task


def collect_checkpoint(task: Task, progress: Progress, scaler: torch.amp.GradScaler) -> "Checkpoint":
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
    return Checkpoint(tensors, optimisers, _random_states(), state)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run, in memory."""

    tensors: dict[str, dict[str, Tensor]]
    optimisers: dict[str, dict[str, Any]]
    random: dict[str, Tensor]
    state: dict[str, Any]

    def write(self, directory: Path) -> None:
        """Fill a directory. `state.json` comes last: where it is, everything is."""
        for name, tensors in self.tensors.items():
            save_file(tensors, directory / f"{name}.safetensors")
        for name, optimiser in self.optimisers.items():
            torch.save(optimiser, directory / f"{name}.optimiser.pt")
        torch.save(self.random, directory / "random.pt")
        (directory / STATE_NAME).write_text(json.dumps(self.state, indent=1) + "\n", encoding="utf-8")


def read_checkpoint(directory: Path, task: Task, scaler: torch.amp.GradScaler) -> None:
    """Bring a task to the state that a checkpoint holds, or CheckpointError where it is damaged or does not fit."""
    state = read_state(directory)
    with _explain_damage(directory):
        for name, trained in task.networks.items():
            load_weights(trained.network, directory / f"{name}.safetensors")
            saved = torch.load(directory / f"{name}.optimiser.pt", map_location="cpu", weights_only=True)
            _load_optimiser(trained.optimiser, saved)
        if task.ema is not None:
            task.ema.load_state_dict(load_file(directory / "ema.safetensors"), state["ema_updates"])
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
    except (OSError, EOFError, SafetensorError, pickle.UnpicklingError, RuntimeError, KeyError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path} cannot be continued from: {text}; remove the checkpoint to go on from the one before"
        ) from error


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


def _load_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for index, entry in saved["state"].items():
        for name, value in entry.items():
            if value.ndim > 0:
                entry[name] = spread_like(value, parameters[index])
    optimiser.load_state_dict(saved)


def read_progress(directory: Path) -> Progress:
    """How far the run was."""
    try:
        return Progress(**read_state(directory)["progress"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / STATE_NAME} does not say how far the run was") from error


def _random_states() -> dict[str, Tensor]:
    states: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
