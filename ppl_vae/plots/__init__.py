r"""Pictures of a latent variable model: tensors in, a matplotlib :class:`~matplotlib.figure.Figure` out.

================================= =======================================================================
:func:`grid`                      images in rows and columns: the sheet that the next five are made of
:func:`samples`                   draws from the model, one row a label
:func:`reconstructions`           x above, its reconstruction below
:func:`interpolation`             decoded paths between two codes, one row a path
:func:`translations`              the style of one image written in every class
:func:`manifold`                  what each point of a two-dimensional latent space decodes to
:func:`latents`                   codes z, coloured by label
:func:`prior_vs_posterior`        draws from p(z) against the aggregate posterior
:func:`history`                   −ELBO, its two parts and β over the epochs
:func:`calibration`               ranks of a guide's draws, flat where the guide is the posterior
:func:`dimensions`                the KL of every latent dimension, shaded where it is not used
:func:`likelihood`                −log p(x|y) by the number of samples, and k̂ of its weights
:func:`save`                      a figure as a file, all of it or none of it
================================= =======================================================================

An image is ``(1, H, W)`` or ``(H, W)`` grey, ``(3, H, W)`` colour, or flat ``(D,)`` with D a square. A value
v is drawn with the brightness

.. math:: u = \min(1, \max(0, (v - lo) / (hi - lo))), \qquad (lo, hi) = \texttt{vrange}:

0 is black and 1 white. ``vrange`` is by default the smallest and the largest finite value in the picture, and
a missing value (NaN) is pale blue. Codes of more than two dimensions are projected on the two leading
eigenvectors of their covariance, and the axes say which share of the variance that is.

Every function takes a heading as ``title``, and tensors on any device, of any dtype, which it leaves as they
are; what does not fit is a :class:`ShapeError`. Figures are made without pyplot: no backend is chosen,
nothing has to be closed, and a machine without a display works as well.

Reference: P. Tol, *Colour Schemes*, 2021 (the label colours: his muted nine, and the orange of his vibrant).
"""

from .calibration import calibration
from .codes import latents, prior_vs_posterior
from .curves import history
from .diagnostics import dimensions
from .figure import save
from .images import grid, interpolation, manifold, reconstructions, samples, translations
from .likelihood import likelihood

__all__ = [
    "calibration",
    "dimensions",
    "grid",
    "history",
    "interpolation",
    "latents",
    "likelihood",
    "manifold",
    "prior_vs_posterior",
    "reconstructions",
    "samples",
    "save",
    "translations",
]
