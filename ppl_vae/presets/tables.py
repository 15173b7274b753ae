r"""The one table of names for every kind of part, body and objective.

.. math:: \texttt{"Gaussian"} \mapsto p(z \mid y)

The command line, ``config.yaml`` and saved models know parts by these strings and by no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import conditions, encoders, likelihoods, networks, objectives, priors
from ..distributions import zuko
from ..errors import known
from ..parts import Chain

__all__ = [
    "CONDITIONS",
    "ENCODERS",
    "FLOWS",
    "HANDED_ON",
    "LIKELIHOODS",
    "NETWORKS",
    "OBJECTIVES",
    "PRIORS",
    "TABLES",
    "Spec",
    "lookup",
]

PRIORS: dict[str, type] = {
    "Standard": priors.Standard,
    "Gaussian": priors.Gaussian,
    "Fixed": priors.Fixed,
    "Mixture": priors.Mixture,
    "Vamp": priors.Vamp,
    "Sphere": priors.Sphere,
    "Chain": Chain,
    **{name: getattr(zuko.flows, name) for name in ("MAF", "NSF", "NICE", "BPF", "GMM", "CNF")},
}
LIKELIHOODS: dict[str, type] = {
    "Bernoulli": likelihoods.Bernoulli,
    "Binomial": likelihoods.Binomial,
    "Gaussian": likelihoods.Gaussian,
    "Laplace": likelihoods.Laplace,
    "StudentT": likelihoods.StudentT,
    "ContinuousBernoulli": likelihoods.ContinuousBernoulli,
    "Beta": likelihoods.Beta,
    "DiscretizedLogistic": likelihoods.DiscretizedLogistic,
    "DiscretizedLogisticMixture": likelihoods.DiscretizedLogisticMixture,
    "Categorical": likelihoods.Categorical,
    "Poisson": likelihoods.Poisson,
    "NegativeBinomial": likelihoods.NegativeBinomial,
}
ENCODERS: dict[str, type] = {
    "Gaussian": encoders.Gaussian,
    "FullGaussian": encoders.FullGaussian,
    "LowRankGaussian": encoders.LowRankGaussian,
    "Mixture": encoders.Mixture,
    "Flow": encoders.Flow,
    "PowerSpherical": encoders.PowerSpherical,
    "Delta": encoders.Delta,
    "Chain": Chain,
}
# What the encoder Flow turns round; a GMM transforms no noise, and a CNF would be integrated twice a step.
FLOWS: dict[str, type] = {name: PRIORS[name] for name in ("MAF", "NSF", "NICE", "BPF")}
CONDITIONS: dict[str, type] = {
    "OneHot": conditions.OneHot,
    "OneHots": conditions.OneHots,
    "Continuous": conditions.Continuous,
    "Image": conditions.Image,
}
NETWORKS: dict[str, type] = {
    "MLP": networks.MLP,
    "GatedMLP": networks.GatedMLP,
    "FiLM": networks.FiLM,
    "Conv": networks.Conv,
    "ResNet": networks.ResNet,
}
OBJECTIVES: dict[str, type] = {
    "trace": objectives.Trace_ELBO,
    "analytic": objectives.Analytic,
    "iwae": objectives.IWAE,
    "renyi": objectives.Renyi,
    "stl": objectives.STL,
    "dreg": objectives.DReG,
    "freebits": objectives.FreeBits,
    "capacity": objectives.Capacity,
}

# What zuko's flows hand the options on to that they do not know themselves.
HANDED_ON: dict[type, tuple[Callable[..., Any], ...]] = {
    zuko.flows.MAF: (zuko.flows.MaskedAutoregressiveTransform, zuko.nn.MaskedMLP),
    zuko.flows.NICE: (zuko.flows.GeneralCouplingTransform, zuko.nn.MLP),
    zuko.flows.GMM: (zuko.nn.MLP,),
    zuko.flows.CNF: (zuko.flows.FFJTransform, zuko.nn.MLP),
}

TABLES = {"prior": PRIORS, "likelihood": LIKELIHOODS, "encoder": ENCODERS, "condition": CONDITIONS}

Spec = str | Mapping[str, Any] | Callable[..., Any]


def lookup(table: Mapping[str, Any], name: object, what: str) -> Any:
    """Return ``table[name]``, or raise a ConfigError that names the nearest."""
    known(what, name, table)
    return table[name]  # type: ignore[index]
