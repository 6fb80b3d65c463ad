"""Networks compiled for one fixed shape, and on CUDA recorded once and replayed, so that no step waits for Python.

A first call costs a minute or more, so this is for many calls of one shape. Results differ from the plain network's by
rounding alone. Source: torch.compile with mode "reduce-overhead" (CUDA graphs).
"""

import torch
from torch import Tensor, nn

from dcae_core.models.autoencoder import Autoencoder


def compile_autoencoder(network: Autoencoder, backend: str = "inductor") -> Autoencoder:
    """Let encoder and decoder of a prepared network run compiled, in place; another shape compiles anew.

    What a call returns is overwritten by the next call of the same half: copy what must live longer.
    """
    for half in (network.encoder, network.decoder):
        half.compile(dynamic=False, backend=backend, mode=_mode(backend))
    return network


class CompiledDenoiser(nn.Module):
    """A diffusion network whose evaluation runs compiled, one recording per shape.

    Args:
        network: in evaluation mode, called as `network(x, t, y)`.
        backend: of torch.compile.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor") -> None:
        super().__init__()
        self.network = network
        self._compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=backend, mode=_mode(backend))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """One evaluation, as the network's own. The copy is for samplers that keep earlier evaluations."""
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(x, t, y).clone()


def _mode(backend: str) -> str | None:
    return "reduce-overhead" if backend == "inductor" else None
