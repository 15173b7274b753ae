"""The VAE of pythae with one hidden layer each side, for the benchmarks that run it in an environment of its own."""

from __future__ import annotations

import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import nn


class Encoder(BaseEncoder):
    """784 to hidden to a mean and a log-variance."""

    def __init__(self, hidden: int, latent: int, activation: type[nn.Module]) -> None:
        BaseEncoder.__init__(self)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), activation())
        self.head = nn.Linear(hidden, 2 * latent)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        """The parameters of q(z | x)."""
        mean, log_variance = self.head(self.body(x)).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """Latent to hidden to the probabilities of 784 pixels."""

    def __init__(self, hidden: int, latent: int, activation: type[nn.Module]) -> None:
        BaseDecoder.__init__(self)
        self.body = nn.Sequential(nn.Linear(latent, hidden), activation(), nn.Linear(hidden, 784))

    def forward(self, z: torch.Tensor) -> ModelOutput:
        """The mean of p(x | z)."""
        return ModelOutput(reconstruction=self.body(z).sigmoid().unflatten(-1, (1, 28, 28)))


def make(hidden: int, latent: int, activation: type[nn.Module]) -> VAE:
    """The model, of binary pixels."""
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=latent, reconstruction_loss="bce")
    sizes = hidden, latent, activation
    return VAE(config, Encoder(*sizes), Decoder(*sizes))
