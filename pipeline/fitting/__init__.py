"""Training of the reference with Lightning, shared by ``pretrain`` and ``finetune``.

Batch t, its randomness and its learning rate are functions of (seed, t); all other state is in ``training.ckpt``.
So a training that is killed and resumed ends with the same weights, bit for bit on a CPU. Several devices that
share the batches end with the weights of one device, up to rounding.
"""

from pipeline.fitting.config import FitConfig
from pipeline.fitting.fit import CHECKPOINT_FILE, fit_reference
from pipeline.fitting.module import Loss

__all__ = ["CHECKPOINT_FILE", "FitConfig", "Loss", "fit_reference"]
