"""Named data sets as tensors with fixed splits; nothing learns here.

===============  ===========  =======  ======  =====================  ======================================
name             shape        classes  levels  train / valid / test   source, under ``root``
===============  ===========  =======  ======  =====================  ======================================
digits           (1, 8, 8)    10       17      1297 / 250 / 250       scikit-learn's ``load_digits``: no file
mnist            (1, 28, 28)  10       256     50000 / 10000 / 10000  ``MNIST/raw`` in torchvision's layout
fashion-mnist    (1, 28, 28)  10       256     50000 / 10000 / 10000  ``FashionMNIST/raw``, the same
kmnist           (1, 28, 28)  10       256     50000 / 10000 / 10000  ``KMNIST/raw``, the same
binarized-mnist  (1, 28, 28)  none     2       50000 / 10000 / 10000  ``binarized_mnist_packed.npz``
omniglot         (1, 28, 28)  none     256     23000 / 1345 / 8115    ``omniglot_28.npz``
frey-faces       (1, 28, 20)  none     256     1565 / 200 / 200       ``frey_faces.npz``
a path           any          any      any     as stored, or cut      the user's ``.npz``
===============  ===========  =======  ======  =====================  ======================================

**Splits.** Of the MNIST family the last 10,000 training images, in file order, validate. ``binarized-mnist``
is Larochelle's own three parts (each ``np.packbits(pixels, axis=1)``). All else is cut by the permutation of
``numpy.random.RandomState(0)``, whose stream numpy has frozen: a split does not depend on ``seed``. For
``omniglot`` that cuts the validation part from the training drawings; neither it nor the drawings are those
of Burda et al. (2016), so likelihoods do not compare with published ones. ``frey-faces`` is a video, and its
permutation puts frames that are nearly alike into different splits.

**Units.** ``scale="levels"`` keeps pixels as stored, in float32. ``scale="unit"`` divides by the largest
level a pixel can have (not the largest seen), or maps the training range of real-valued data to [0, 1].

**Binarisation.** With p the pixel over its largest level, ``"threshold"`` keeps p ≥ ½, ``"static"`` draws
each pixel once from Bernoulli(p), and ``"dynamic"`` leaves p in the training split, to be drawn afresh
whenever it is trained on, with the ``"static"`` draw in valid and test. The draws of train, valid and test
come from ``RandomState([seed, k])``, k = 0, 1, 2, so that none depends on the size of another.
"""

from .loading import from_tensors, load
from .splits import Data, Split, as_tensor, check_finite, drawn

__all__ = ["Data", "Split", "as_tensor", "check_finite", "drawn", "from_tensors", "load"]
