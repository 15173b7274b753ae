r"""``CapturedSVI``: ``pyro.infer.SVI`` at the speed of hand-written code.

.. math:: \theta_{t+1} = \begin{cases}
    \mathrm{optim}(\theta_t, \nabla \ell(\theta_t)) & \ell, \nabla \ell \text{ finite} \\
    \theta_t \text{, and an error that says where} & \text{otherwise} \end{cases}

The first step of every shape is a stock one, with validation. The second records the program as a graph
(:mod:`ppl_vae.capture.recording`), and from there on it is replayed. The first replays and every so many after them are
compared with the stock loss and gradient at the same random numbers; of a step that stays on the device, the recording
that it was made of.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from torch import Tensor
from torch.utils import _pytree as pytree

from ..devices import check_gradients, cuda_devices, uncast
from ..errors import CaptureError, ConfigError, PplVaeError, known
from .guard import LastSite, Sizes, compare, first_bad_site, first_line, not_finite, size_of, unconstrained
from .ledger import Ledger
from .loss import Loss
from .optimiser import Together
from .program import SCALARS, Call, Latest, Program, kind
from .recording import CaptureWarning, Generators, Watch, cannot_record, record
from .replay import Replay
from .static import StaticStep, cannot_stay, look_up

__all__ = ["Backend", "CapturedSVI"]

Backend = Literal["auto", "off", "graph", "inductor", "cudagraph", "cudagraph-inductor"]
_FIRST_CHECKS = 3
_MOST_SHAPES = 32
# Recording takes as long as about so many stock steps of a small model.
_WORTH_RECORDING = 150


class CapturedSVI(SVI):
    """``pyro.infer.SVI`` whose steps replay a recorded graph, for any Pyro program of static structure.

    A non-finite loss or gradient raises before it reaches a parameter, whatever the backend.

    Arguments:
        model, guide: the program; parameters in modules, in ``pyro.param``, or both.
        optim: a class of ``torch.optim`` or a partial of one, called with the parameters; an instance; or Pyro's.
        loss: a Pyro ELBO with ``differentiable_loss``, such as ``Trace_ELBO()`` or ``TraceMeanField_ELBO()``.
        backend: "off" for stock steps; "graph" for the recorded graph, no compiler; "inductor", which compiles it (on a
            CPU with a C++ compiler); "cudagraph", the whole step on the device, optimiser included, its loss read late;
            "cudagraph-inductor", both; "auto" takes "cudagraph" on a CUDA device and elsewhere "graph", and compiles if
            ``steps`` says that the run is long enough to repay a compiler. ``backend`` says what it came to.
        steps: how many there will be, as far as one knows; for "auto".
        clip: the largest norm of the whole gradient, if any.
        weight: a constant that multiplies loss and gradient from outside, so that it means the same under every loss.
        precision: "32", or "bf16-mixed" for matrix products in bfloat16 and everything else in single precision.
        batch: from a step's arguments to the program's, ``(args, kwargs)``: gathering rows, drawing binary pixels. It
            is recorded with the rest. By default they are the same.
        watch: makes a :class:`Watch` for every step.
        check_every: compare with the stock step once in so many steps, and in the first after :meth:`read`: under
            "cudagraph" and "cudagraph-inductor" if so many have passed since the last comparison, or a number that the
            program can reach has changed.

    Raises:
        CaptureError: from a step, when a replay and the stock step disagree; it names what may have been frozen.
        NonFiniteError: from a step, naming it and the site; the parameters are bit for bit what they were.

    Example:
        >>> vae = pv.vae((4,), 2, likelihood="Gaussian")
        >>> svi = CapturedSVI(vae.model, vae.guide, torch.optim.Adam, pv.objectives.Trace_ELBO(), backend="graph")
        >>> x = 3 * torch.randn(64, 4)
        >>> losses = [svi.step(x) for _ in range(200)]
        >>> sum(losses[-20:]) < sum(losses[:20])
        True
    """

    optim: Together

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Any,
        loss: ELBO,
        backend: Backend = "auto",
        *,
        steps: int | None = None,
        clip: float | None = None,
        weight: float = 1.0,
        precision: Literal["32", "bf16-mixed"] = "32",
        batch: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
        watch: Callable[[], Watch] = Watch,
        check_every: int = 1000,
    ) -> None:
        known("backend", backend, get_args(Backend))
        super().__init__(model, guide, Together(optim, clip), loss)
        self._loss, self.check_every = Loss(model, guide, loss, weight, precision), check_every
        self._choose, self.planned = backend == "auto", steps
        self.backend: str = "off" if self._choose and (steps or math.inf) < _WORTH_RECORDING else backend
        self.batch = batch or (lambda *args, **kwargs: (args, kwargs))
        self.watch, self.steps = watch, 0
        self.watched: dict[str, Tensor] = {}
        self._program = Program(model, guide, batch)
        self._graphs: dict[Any, Replay | None] = {}
        self._met: Latest[dict[str, Tensor]] = Latest(_MOST_SHAPES, self._graphs)
        self._warned = self._check_next = False
        # How many keys were new without enough steps between to repay a recording; and the step of the last.
        self._unlike = self._new_at = 0
        self._ledger = Ledger()
        # The step of the last comparison, and the program's numbers then.
        self._checked: tuple[int, Any] = 0, None
        self._static: StaticStep | None = None

    # One step

    @uncast
    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step; return the loss, a number, or from a CUDA graph a tensor that nobody has waited for."""
        check_gradients("a step")
        self.steps += 1
        before = self._generators()
        call = self._call(args, kwargs)
        replay, tensors = self._graph(call), call.tensors
        self._static = None
        if replay is None:
            self._look_at_flag()
            loss, gradients = self._stock(args, kwargs, before)
            # Anew: the first step of all makes parameters, and tells the objective how plates are nested.
            if call.key is not None and (key := self._call(args, kwargs).key) is not None:
                self._meet(key, self._leaves)
        elif replay.runs < _FIRST_CHECKS or self._due():
            self._check_next = False
            self._look_at_flag()
            state = Generators(before.devices, self._program.buffers)
            with Sizes() as sizes:
                expected = self._stock(args, kwargs, before)
            size = self._loss.weight * sizes.size / self._loss.elbo.num_particles
            about = replay.numbers, self._program.numbers(), self.steps
            self._checked = self.steps, about[1]
            if replay.compiled:
                # That the graph is the program shows before a compiler has reordered its sums.
                state.restore()
                compare(replay.as_recorded(tensors), expected, size, False, *about)
            state.restore()
            loss, gradients = replay(tensors)
            compare((loss, gradients), expected, size, replay.compiled, *about)
            self.watched = replay.watched
        elif self._stays and self._static_step(replay, tensors):
            self._static = replay.static
            return self._nobody_waits(replay.static, tensors, before, (args, kwargs)).clone()
        else:
            self._look_at_flag()
            loss, gradients = replay(tensors)
            self.watched = replay.watched
        value = loss.item()
        if not math.isfinite(value + size_of(gradients.values()).item()):
            self._refuse_non_finite(value, gradients, before, (args, kwargs))
        leaves = self.optim.leaves
        for name, gradient in gradients.items():
            leaves[name].grad = gradient
        self.optim([leaves[name] for name in gradients])
        # Pyro's own SVI adds to gradients it finds, so none are left for it.
        self.optim.zero_grad()
        self._ledger.add(loss=value, steps=1.0, **{name: seen.item() for name, seen in self.watched.items()})
        return value

    @uncast
    def run(self, batches: Iterable[tuple[Any, ...]]) -> None:
        """Take a step for the arguments in each of ``batches``; nothing else may change the program meanwhile.

        Whether it has changed is looked at once for every shape, which for a CUDA graph takes longer than the step.
        """
        ready: dict[Any, StaticStep] = {}
        running = self._program.running
        for args in batches:
            simple = all(v is None or isinstance(v, Tensor) for v in args)
            shapes = tuple(None if v is None else (v.shape, v.dtype) for v in args) if simple else None
            if (static := ready.get(shapes)) is None or self._due(1) or not self._stays:
                self.step(*args)
                if self._static is not None and simple:
                    ready[shapes] = self._static
            else:
                self.steps += 1
                before = Generators(cuda_devices(self._ledger.flag.device), running)
                self._nobody_waits(static, [v for v in args if v is not None], before, (args, {}))

    @property
    def _stays(self) -> bool:
        """Whether whole steps stay on the device."""
        return self.backend.startswith("cudagraph")

    def _due(self, ahead: int = 0) -> bool:
        """Whether this step, or one ahead, is to be compared with a stock one."""
        return self._check_next or (self.steps + ahead) % self.check_every == 0

    def _nobody_waits(self, static: StaticStep, tensors: Sequence[Tensor], before: Generators, call: Any) -> Tensor:
        """Take a step; keep what it takes to look at it again."""
        if self._ledger.full:
            self._look_at_flag()
        self._ledger.keep(self.steps, (before, call), sum(tensor.nbytes for tensor in tensors))
        return static(tensors)

    def read(self) -> dict[str, float]:
        """Return the sums of ``loss``, ``steps`` and what was watched, over the steps since the last call.

        Between two of these calls is where a program may have been changed, so the next step is compared with stock;
        of steps that stay on the device, where a comparison costs hundreds, see ``check_every``.

        Raises:
            NonFiniteError: from a CUDA graph, if a step since then was not finite; from there on nothing changed.
        """
        self._look_at_flag()
        long_ago = self.steps - self._checked[0] >= self.check_every
        self._check_next = not self._stays or long_ago or self._checked[1] != self._program.numbers()
        return self._ledger.read()

    def _static_step(self, replay: Replay, tensors: list[Tensor]) -> bool:
        """Make sure that there is a step to stay on the device, or say why there is none."""
        if replay.static is None or replay.static.moved:
            self._look_at_flag()
            try:
                replay.static = StaticStep(replay, self.optim, tensors, self._ledger, self._program.buffers)
            except CaptureError as error:
                self._leave(str(error))
        return self._stays

    def _leave(self, reason: str) -> None:
        self.backend = "inductor" if "inductor" in self.backend else "graph"
        self._warn(f"not in one CUDA graph, but replayed as recorded: {reason}")

    def _look_at_flag(self) -> None:
        if (found := self._ledger.look()) is not None:
            step, (before, (args, kwargs)) = found
            before.restore()
            raise not_finite(step, math.nan, self._first_bad_site(args, kwargs) or "a gradient")

    def _stock(self, args: Any, kwargs: Any, before: Generators) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and the gradients as Pyro computes them, validation and all."""
        self.optim.zero_grad()
        try:
            program_args, program_kwargs = self.batch(*args, **kwargs)
            with self.watch() as watch, poutine.trace(param_only=True) as params:
                loss, weight = self._loss.and_gradients(*program_args, **program_kwargs)
        except PplVaeError:
            raise
        except ValueError as error:
            # Validation meets a NaN parameter of a distribution before there is a loss; other errors are the program's.
            self.optim.zero_grad()
            before.restore()
            if (where := self._first_bad_site(args, kwargs)) is None:
                raise
            raise not_finite(self.steps, math.nan, where) from error
        self.watched = watch.values()
        self._leaves = unconstrained(params.trace)
        self.optim.meet(self._leaves)
        gradients = {name: leaf.grad * weight for name, leaf in self._leaves.items() if leaf.grad is not None}
        self.optim.zero_grad()
        # Pyro adds the loss up in double precision.
        return torch.as_tensor(loss, dtype=torch.float64).detach(), gradients

    @uncast
    def meet(self, *args: Any, **kwargs: Any) -> None:
        """Run the program once, instead of the stock step that a shape begins with; no random number is spent.

        Afterwards every parameter exists, the optimiser has it, and all steps of this shape are replays. Nothing is
        left to do for a program and a shape that were met before.
        """
        if self.optim.leaves and ((key := self._call(args, kwargs).key) is None or self._met.again(key)):
            return
        state = Generators(self._generators().devices, self._program.buffers)
        program_args, program_kwargs = self.batch(*args, **kwargs)
        with poutine.trace(param_only=True) as params:
            self._loss.look(*program_args, **program_kwargs)
        leaves = unconstrained(params.trace)
        self.optim.meet(leaves)
        state.restore()
        if (key := self._call(args, kwargs).key) is not None:
            self._meet(key, leaves)

    @property
    def _device(self) -> torch.device:
        return next((leaf.device for leaf in self.optim.leaves.values()), torch.device("cpu"))

    def _generators(self) -> Generators:
        devices = cuda_devices(self._device)
        if not self.optim.leaves and torch.cuda.is_initialized():
            # Before the first run nothing says where the parameters are.
            devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        return Generators(devices, self._program.running)

    def _call(self, args: Any, kwargs: Any) -> Call:
        """The arguments, and the key of their graph for the program as it is now."""
        if self.backend == "auto" and self.optim.leaves:
            self.backend = "cudagraph" if self._device.type == "cuda" and self.optim.capturable else "graph"
        if self._stays and self.optim.leaves:
            if not (self.optim.capturable if self._device.type == "cuda" else self.optim.fused):
                raise ConfigError(
                    f"backend={self.backend!r}: expected a fused optimiser whose rate is a tensor, which a graph looks "
                    "up at every step: partial(Adam, lr=torch.tensor(1e-3, device='cuda'), fused=True, capturable=True)"
                )
            self._ledger.to(self._device)
        if self.backend == "off":
            return Call(None, (), None)
        # Tensors alone need no walk through whatever the arguments may be, which takes longer than the rest of this.
        simple = not kwargs and all(isinstance(value, Tensor) for value in args)
        flat, spec = (args, None) if simple else pytree.tree_flatten((args, kwargs))
        if self._stays:
            flat = [value.to(self._device) if isinstance(value, Tensor) else value for value in flat]
        inputs = tuple(kind(value) for value in flat)
        plain = tuple(v for v in (self._loss.weight, *vars(self._loss.elbo).values()) if isinstance(v, SCALARS))
        return Call((inputs, spec, self._program.key(self.optim.leaves), plain), flat, spec)

    def _meet(self, key: Any, leaves: dict[str, Tensor]) -> None:
        """Know a new key; give up where they come too fast for a recording to be worth it."""
        self._met[key] = leaves
        since, self._new_at = self.steps - self._new_at, self.steps  # 0 for another shape of one program.
        self._unlike = 0 if since >= _WORTH_RECORDING else self._unlike + (since > 0)
        if self._unlike > _MOST_SHAPES:
            self._fall_back(f"more than {_MOST_SHAPES} kinds of step, of a few each: what is no tensor keeps changing")

    def _graph(self, call: Call) -> Replay | None:
        """The graph of a call, recorded where it was met before and has none; None for a stock step."""
        if call.key in self._graphs or call.key is None:
            return self._graphs.get(call.key)
        if call.key in self._met:
            self._graphs[call.key] = self._record(call.flat, call.spec, call.tensors, self._met[call.key])
        return self._graphs.get(call.key)

    def _record(self, flat: Any, spec: Any, tensors: list[Tensor], leaves: dict[str, Tensor]) -> Replay | None:
        """Record the program; None, with a warning, where it cannot be."""
        if not self._loss.is_recordable:
            return self._fall_back(f"{type(self._loss.elbo).__name__} has no differentiable_loss")
        state = Generators(self._generators().devices, self._program.buffers)

        def batch(*inputs: Tensor) -> Any:
            rest = iter(inputs)
            full = [next(rest) if isinstance(value, Tensor) else value for value in flat]
            args, kwargs = (full, {}) if spec is None else pytree.tree_unflatten(full, spec)
            return self.batch(*args, **kwargs)

        last = LastSite()
        try:
            if (reason := cannot_record(self.guide, *batch(*tensors))) is not None:
                return self._fall_back(reason)
            with last:
                graph, reached = record(self._loss, list(leaves.values()), batch, self.watch, tensors)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            # Whatever is wrong with the program itself, the stock step that follows will say.
            return self._fall_back(f"recording stopped {last}: {first_line(error)}")
        finally:
            state.restore()
        if self._stays:
            look_up(graph)
            if (reason := cannot_stay(graph, self._device)) is not None:
                self._leave(reason)
        replay = Replay(graph, [list(leaves)[i] for i in reached], self._program.numbers())
        repays = self._choose and self.planned is not None and replay.repays_compiling(self.planned, self._device)
        if repays or self.backend.endswith("inductor"):
            reason = replay.compile(tensors)
            state.restore()
            compiled, recorded = ("cudagraph-inductor", "cudagraph") if self._stays else ("inductor", "graph")
            self.backend = compiled if reason is None else recorded
            if reason is not None:
                self._warn(f"not compiled, but replayed as recorded: {reason}")
        return replay

    def _fall_back(self, reason: str) -> Any:
        """Take stock steps from now on, and say why, once."""
        if not self._warned:
            self._warn(f"this program takes stock steps: {reason}")
        self._warned, self.backend = True, "off"

    @staticmethod
    def _warn(message: str) -> None:
        warnings.warn(message, CaptureWarning, stacklevel=6)

    def _refuse_non_finite(self, loss: float, gradients: dict[str, Tensor], before: Generators, call: Any) -> None:
        """Raise, if the loss or a gradient is not finite, with the site where that begins."""
        bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        if math.isfinite(loss) and not bad:
            return
        before.restore()
        names = ", ".join(name.rpartition("$$$")[2] for name in bad)
        raise not_finite(self.steps, loss, self._first_bad_site(*call) or f"the gradient of {names}")

    def _first_bad_site(self, args: Any, kwargs: Any) -> str | None:
        # What it writes to is the state that the step was refused in.
        state = Generators(self._generators().devices, self._program.buffers)
        try:
            with self._loss.mixed():
                args, kwargs = self.batch(*args, **kwargs)
                return first_bad_site(self.model, self.guide, args, kwargs)
        finally:
            state.restore()
