"""Autoencoders, VAEs and conditional VAEs as one Pyro program, every part of which is an argument."""

from . import (
    checkpoint,
    conditions,
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
from .conditions import OneHot
from .evaluation import audit, evaluate
from .history import History
from .model import VAE
from .parts import Chain, Part, Unconditional
from .posthoc import fit_prior
from .presets import ae, cvae, vae
from .semisupervised import SemiSupervised
from .training import fit

__all__ = [
    "VAE",
    "Chain",
    "History",
    "OneHot",
    "Part",
    "SemiSupervised",
    "Unconditional",
    "ae",
    "audit",
    "checkpoint",
    "conditions",
    "cvae",
    "data",
    "distributions",
    "encoders",
    "errors",
    "evaluate",
    "evaluation",
    "fit",
    "fit_prior",
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
