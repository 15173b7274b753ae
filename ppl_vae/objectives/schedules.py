r"""Schedules of β: how much the KL weighs in an epoch.

.. math:: \text{epoch} \mapsto \beta_{\text{epoch}}, \qquad \text{epochs counted from } 1

For ``fit(beta=...)``. None of them is ever 0: β = 0 leaves the KL out, which is another program, and another recorded
graph, for one epoch's sake.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigError, check_positive

__all__ = ["cyclic", "warmup"]


def warmup(epochs: int, beta: float = 1.0) -> Callable[[int], float]:
    r"""Return the schedule of β for ``fit(beta=...)`` that rises over so many epochs, counted from 1.

    .. math:: \beta_{\text{epoch}} = \beta \min(1, \text{epoch} / \text{epochs})

    Arguments:
        epochs: how many; 0 for none, β from the first.
        beta: what it rises to.

    Raises:
        ConfigError: for a number of epochs that makes no sense.

    Reference:
        Ladder Variational Autoencoders (Sønderby et al., 2016)

    Example:
        >>> [warmup(4)(epoch) for epoch in (1, 2, 4, 9)]
        [0.25, 0.5, 1.0, 1.0]
    """
    if epochs != 0:
        check_positive(epochs=epochs)
    return lambda epoch: beta * min(1.0, epoch / epochs) if epochs else beta


def cyclic(period: int, cycles: int | None = None, rise: float = 0.5, beta: float = 1.0) -> Callable[[int], float]:
    r"""Return the schedule of β for ``fit(beta=...)`` that rises anew in every cycle.

    .. math:: \beta_{\text{epoch}} = \beta \min\Bigl(1, \frac{t}{\text{rise} \cdot \text{period}}\Bigr), \qquad
        t = 1 + (\text{epoch} - 1) \bmod \text{period}

    A code that has collapsed gets another chance in each cycle, from weights that already decode.

    Arguments:
        period: how many epochs a cycle has.
        cycles: how many cycles, after which β stays; None for no end.
        rise: which part of a cycle β rises in, 0 < rise ≤ 1.
        beta: what it rises to.

    Raises:
        ConfigError: for a period, a number of cycles or a rise that makes no sense.

    Reference:
        Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing (Fu et al., 2019)

    Example:
        >>> [cyclic(4, cycles=2)(epoch) for epoch in range(1, 11)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    check_positive(period=period, **({} if cycles is None else {"cycles": cycles}))
    if not 0 < rise <= 1:
        raise ConfigError(f"cyclic: expected 0 < rise ≤ 1, got {rise}")

    def at(epoch: int) -> float:
        if cycles is not None and epoch > cycles * period:
            return beta
        return beta * min(1.0, (1 + (epoch - 1) % period) / (rise * period))

    return at
