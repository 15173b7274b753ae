"""Autoencoders, VAEs and conditional VAEs as one Pyro program, every part of which is an argument."""

from . import (
    checkpoint,
    data,
    distributions,
    encoders,
    errors,
    evaluation,
    likelihoods,
    networks,
    objectives,
    parts,
    plots,
    presets,
    priors,
    training,
)
from .checkpoint import load, save
from .evaluation import audit, evaluate
from .model import VAE
from .networks import OneHot
from .parts import Part, Unconditional
from .presets import ae, cvae, vae
from .training import History, fit

__all__ = [
    "VAE",
    "History",
    "OneHot",
    "Part",
    "Unconditional",
    "ae",
    "audit",
    "checkpoint",
    "cvae",
    "data",
    "distributions",
    "encoders",
    "errors",
    "evaluate",
    "evaluation",
    "fit",
    "likelihoods",
    "load",
    "networks",
    "objectives",
    "parts",
    "plots",
    "presets",
    "priors",
    "save",
    "training",
    "vae",
]
__version__ = "0.1.0"
