"""Epochs of pythae's trainer, for ``epoch_time.py``, which runs this in an environment of its own.

The architecture, batch size and learning rate of Pyro's VAE example. Answers every line with the seconds of an epoch.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from common import Turns, images, say
from pythae.data.datasets import BaseDataset
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from pythae_model import make
from torch import nn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--root")
parser.add_argument("--rows", type=int, default=60_000)
parser.add_argument("--hidden", type=int, default=400)
parser.add_argument("--latent", type=int, default=50)
parser.add_argument("--batch", type=int, default=256)
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=0)
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)


class ByTurns(TrainingCallback):
    """Waits between the epochs."""

    def on_epoch_end(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
        """Answer, and sleep until it is our turn again."""
        turns.done()
        if turns.wait() is None:
            raise SystemExit


x, y, _ = images(args.root, args.rows)
data = BaseDataset(torch.from_numpy(x).float(), torch.from_numpy(y).long())
turns = Turns(args.device)
say(ready=True)
if turns.wait() is not None:
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1_000_000,
            learning_rate=1e-3,
            per_device_train_batch_size=args.batch,
            no_cuda=not args.device.startswith("cuda"),
        )
        BaseTrainer(
            make(args.hidden, args.latent, nn.Softplus), data, training_config=settings, callbacks=[ByTurns()]
        ).train()
