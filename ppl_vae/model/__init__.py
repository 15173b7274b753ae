r"""The VAE: two Pyro programs, and what one asks of a generative model.

.. math::
    \text{model:}\quad z \sim p(z \mid y), \quad x \sim p(x \mid z, y)
    \qquad\qquad
    \text{guide:}\quad z \sim q(z \mid x, y)

.. math::
    \log p(x \mid y) = \underbrace{\mathbb{E}_{q}\bigl[\log p(x \mid z, y)\bigr]
        - \mathrm{KL}\bigl(q(z \mid x, y) \,\|\, p(z \mid y)\bigr)}_{\text{ELBO}}
        + \mathrm{KL}\bigl(q(z \mid x, y) \,\|\, p(z \mid x, y)\bigr)

An autoencoder, a VAE and a conditional VAE are this one class: the parts differ. No part is imported here, and that is
what makes every part exchangeable.

==================================== ================================================================
:mod:`~ppl_vae.model.assembly`       the parts as one module, β, and the names of their parameters
:mod:`~ppl_vae.model.inputs`         x, y and mask as users pass them: checked, cast, y made c
:mod:`~ppl_vae.model.programs`       the model and the guide, on one page
:mod:`~ppl_vae.model.vae`            what one asks of them: sample, encode, decode, log p(x|y), ...
:mod:`~ppl_vae.model.masking`        pixels that are not seen
:mod:`~ppl_vae.model.checks`         what of the parts is checked
==================================== ================================================================

References:
    Auto-Encoding Variational Bayes (Kingma and Welling, 2014);
    Learning Structured Output Representation using Deep Conditional Generative Models (Sohn et al., 2015);
    beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017).
"""

from .vae import VAE, Proposal, density_numbers

__all__ = ["VAE", "Proposal", "density_numbers"]
