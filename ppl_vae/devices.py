r"""Where tensors live, and the random numbers there.

.. math:: \text{seed} \mapsto \text{the state of the generators of the CPU and of one device}

A function of this library that draws with a seed of its own leaves the caller's generators as they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from .errors import ConfigError

__all__ = ["check_gradients", "cuda_devices", "find_device", "is_cast", "mixed", "seed_all", "seeded", "uncast"]


def find_device(device: str | torch.device) -> torch.device:
    """Return a device that is here; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: for one that is not, or has no double precision, in which likelihoods are added up.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        torch.empty(0, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        expected = "auto, cpu or one that is here and has double precision"
        raise ConfigError(f"device: expected {expected}, got {str(device)!r}: {error}") from error
    return device


def cuda_devices(device: torch.device) -> list[torch.device]:
    """Return [device] for a CUDA device, else []: what ``fork_rng`` must fork besides the CPU."""
    return [device] if device.type == "cuda" else []


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and the device's; ``torch.manual_seed`` would seed those of idle GPUs too."""
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"seed: expected a whole number of 64 bits, got {seed}")
    torch.default_generator.manual_seed(seed)
    for cuda in cuda_devices(device):
        with torch.cuda.device(cuda):
            torch.cuda.manual_seed(seed)


def check_gradients(what: str) -> None:
    """Raise a :class:`ConfigError` where no gradient is recorded.

    Torch itself goes on there as if nothing depended on a parameter, and all gradients were zero.

    Example:
        >>> with torch.inference_mode(), torch.enable_grad():
        ...     check_gradients("fit")
        Traceback (most recent call last):
        ppl_vae.errors.ConfigError: fit: no gradient is recorded inside torch.inference_mode(): call it outside
    """
    # enable_grad() ends what no_grad() began, and not inference mode.
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        mode = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise ConfigError(f"{what}: no gradient is recorded inside torch.{mode}(): call it outside")


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Run with generators of our own, seeded, and give the caller's back; None runs with the caller's.

    Example:
        >>> before = torch.get_rng_state()
        >>> with seeded(0, torch.device("cpu")):
        ...     draw = torch.rand(())
        >>> round(draw.item(), 4), torch.equal(before, torch.get_rng_state())
        (0.4963, True)
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(cuda_devices(device)):
        seed_all(seed, device)
        yield


def uncast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function run outside of the caller's ``torch.autocast``.

    Example:
        >>> product = uncast(torch.matmul)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     product(torch.ones(2, 2), torch.ones(2, 2)).dtype, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        (torch.float32, torch.bfloat16)
    """

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        if not is_cast():
            return function(*args, **kwargs)
        with _cast(False):
            return function(*args, **kwargs)

    return plain


def is_cast() -> bool:
    """Return whether matrix products are cast to another precision here."""
    return any(map(torch.is_autocast_enabled, _kinds()))


@functools.cache
def _kinds() -> tuple[str, ...]:
    """The kinds of devices there are here: the CPU, and one of accelerators if there is any."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ("cpu",) if there is None else ("cpu", there.type)


@contextmanager
def _cast(enabled: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for kind in _kinds():
            # Without its cache, which would keep a parameter's bfloat16 copy past the optimiser's step in a recorded
            # graph.
            stack.enter_context(torch.autocast(kind, torch.bfloat16, enabled=enabled, cache_enabled=False))
        yield


@contextmanager
def mixed(enabled: bool = True) -> Iterator[None]:
    """Have matrix products in bfloat16, and everything else in single precision, on whatever device it is.

    Example:
        >>> with mixed():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    with _cast(enabled):
        yield
