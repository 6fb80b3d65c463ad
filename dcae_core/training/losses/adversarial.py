"""The GAN terms: hinge losses, a weight that follows the gradients, a penalty on steep discriminators."""

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_ADAPTIVE_WEIGHT = 1e4


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """(mean(relu(1 - real)) + mean(relu(1 + fake))) / 2, of logits of any shape, as a scalar.

    Source: Lim and Ye 2017 (arXiv 1705.02894); halved as in VQGAN (taming-transformers `vqperceptual.py`).
    """
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean(fake), of logits of any shape, as a scalar."""
    return -fake.mean()


def adaptive_weight(reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor) -> Tensor:
    """How much the GAN term may weigh so that both losses pull equally at the last layer.

    Costs two backward passes through that layer.

    Returns:
        A scalar without gradient, between 0 and 10,000.

    Source: Esser et al. 2021 (arXiv 2012.09841), equation 7, delta = 1e-4 as in the published code.
    """
    (towards_picture,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (towards_fooling,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    ratio = towards_picture.norm() / (towards_fooling.norm() + 1e-4)
    return ratio.clamp(0.0, _MAX_ADAPTIVE_WEIGHT).detach()


def r1_penalty(real_logits: Tensor, real: Tensor) -> Tensor:
    """Half the squared gradient of the discriminator at real pictures, averaged over them, as a scalar.

    Args:
        real_logits: the discriminator's output on `real`.
        real: (B, 3, H, W), requiring gradients.

    Source: Mescheder et al. 2018 (arXiv 1801.04406), equation 9.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(dim=1).mean()
