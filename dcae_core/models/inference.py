"""A loaded network made ready for fast inference: the same function, fewer operations or compiled ones."""

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from dcae_core.devices import memory_of, processor_family
from dcae_core.models.autoencoder import Autoencoder, EncoderHead
from dcae_core.models.compilation import Compiled, CompileMode, repays_compiling
from dcae_core.models.dit import DiT
from dcae_core.models.layers import ResBlock
from dcae_core.models.uvit import UViT
from dcae_core.models.winograd import Rule, WinogradConv2d, fits_winograd, rule_for

_TRANSFORMED_SIZE = 4  # a transformed weight is four times the plain one
_MEMORY_SHARE = 0.25

Network = TypeVar("Network", bound=nn.Module)


def for_run(network: Network, num_calls: float, mode: CompileMode = "auto") -> Network:
    """The network that a run of so many calls of one shape should use: itself, or where that repays the time, compiled.

    Every command asks this function, and `dcae bench` with them. An autoencoder is compiled in place, its halves each
    for itself; a diffusion network is wrapped; what is neither stays what it is.

    Args:
        network: in evaluation mode; an autoencoder, as `prepare_for_inference` leaves it.
        num_calls: of the whole run, also of what an earlier, stopped one has done: one run has one kind of network.
        mode: "auto", "always" or "never", see `repays_compiling`.
    """
    if not isinstance(network, Autoencoder | UViT | DiT):
        return network
    if not repays_compiling(next(network.parameters()).device, num_calls, mode):
        return network
    if isinstance(network, Autoencoder):
        for name in ("encoder", "decoder"):
            setattr(network, name, Compiled.of(getattr(network, name), mode))
        return network
    return cast(Network, Compiled.of(network, mode))


def prepare_for_inference(network: Autoencoder, rule: Rule | None = None) -> Autoencoder:
    """Prepare a network, in place; it can no longer be trained or saved. Returns the same object.

    On the CPU in float32 the transformed weights of 3x3 convolutions take four times their room
    and are kept if that is less than a quarter of the machine's memory, else made at each call.

    Args:
        network: on the device and in the number type that it will run in.
        rule: which convolutions go through Winograd's algorithm; None takes the rule of this machine's processor.
    """
    network.eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, ResBlock) and isinstance(module.norm, nn.BatchNorm2d):
            _fold_batch_norm(module)
    network.to(memory_format=torch.channels_last)
    parameter = next(network.parameters())
    if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
        _use_winograd(network, rule_for(processor_family()) if rule is None else rule)
    return network


def _fold_batch_norm(block: ResBlock) -> None:
    norm = block.norm
    assert isinstance(norm, nn.BatchNorm2d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    dtype = block.conv2.weight.dtype
    weight: Tensor = (block.conv2.weight.double() * scale[:, None, None, None]).to(dtype)
    bias: Tensor = (norm.bias.double() - mean.double() * scale).to(dtype)
    block.conv2.weight = nn.Parameter(weight, requires_grad=False)
    block.conv2.bias = nn.Parameter(bias, requires_grad=False)
    block.norm = nn.Identity()


def _use_winograd(network: Autoencoder, rule: Rule) -> None:
    places = [
        (parent, name, child)
        for parent in network.modules()
        if not isinstance(parent, EncoderHead)
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and fits_winograd(child, rule)
    ]
    needed = _TRANSFORMED_SIZE * sum(child.weight.nbytes for _, _, child in places)
    keep_transformed = needed < _MEMORY_SHARE * memory_of(torch.device("cpu"))
    for parent, name, child in places:
        setattr(parent, name, WinogradConv2d(child, keep_transformed, rule))
