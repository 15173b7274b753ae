"""The command line: parse, call, print; no mathematics.

::

    ppl-vae train --data digits --prior Gaussian --likelihood Binomial --latent 16 --out runs/a
    ppl-vae sample runs/a --label 3 --n 16
    ppl-vae reconstruct | evaluate | audit | plot runs/a
    ppl-vae compare runs/a runs/b
    ppl-vae train --resume --out runs/a --epochs 300

A part is named and takes the options of its own class: ``--prior NSF --prior.transforms 3``. What parts share (the
number of features, the shape of x, the context) is filled in from ``--latent`` and the data; ``--print_config`` shows
it. A run is a folder: ``config.yaml``, ``metrics.jsonl``, the model, ``evaluation.json`` and the pictures.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from .. import __version__, presets
from ..errors import PplVaeError
from .report import AuditFailed
from .runs import audit_run, compare_runs, evaluate_run, plot, reconstruct, sample
from .train import train

__all__ = ["main"]

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "sample": sample,
    "reconstruct": reconstruct,
    "evaluate": evaluate_run,
    "compare": compare_runs,
    "audit": audit_run,
    "plot": plot,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 1 for an audit that failed, 2 after one line that says what was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal, or a file, that has no − is no reason to lose what was measured.
            stream.reconfigure(errors="backslashreplace")
    try:
        if not words or words[0] in ("-h", "--help"):
            print((__doc__ or "").strip())
        elif words[0] == "--version":
            print(f"ppl_vae {__version__}")
        else:
            presets.lookup(COMMANDS, words[0], "command")(words[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads has read enough (| head); what Python would still flush at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (PplVaeError, argparse.ArgumentError, OSError) as error:
        print(f"ppl-vae: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, AuditFailed) else 2
    except KeyboardInterrupt:
        print("ppl-vae: interrupted", file=sys.stderr)
        return 130
    return 0
