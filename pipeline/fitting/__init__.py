"""Training of the reference with Lightning, shared by ``pretrain`` and ``finetune``.

Batch t, its randomness and its learning rate are functions of (seed, t), and everything else lives in
``training.ckpt``; so a run that is killed and started again ends with the same weights, bit for bit on a CPU, and
several devices that share the batches end with the weights of one, up to rounding.
"""

from pipeline.fitting.config import FitConfig
from pipeline.fitting.fit import CHECKPOINT_FILE, fit_reference
from pipeline.fitting.module import Loss

__all__ = ["CHECKPOINT_FILE", "FitConfig", "Loss", "fit_reference"]
