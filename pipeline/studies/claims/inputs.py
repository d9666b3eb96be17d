"""What claims read: the folder of a finished run, and the scenes that all is judged on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data.store import SceneStore, is_store, shard_name, spread, write_shard
from data.vocabulary import Vocabulary, build_vocabulary
from pipeline.fitting import CHECKPOINT_FILE
from pipeline.fitting.config import FitConfig
from pipeline.run.run_folder import VOCABULARY, RunFolder
from pipeline.stages.finetune import run_finetune
from pipeline.stages.pretrain import run_pretrain
from pipeline.studies.claims.config import ClaimsConfig, ReferenceSpec

_SPLIT = "validation"


def claim_inputs(run: Path, policy: bool) -> RunFolder:
    """The folder of a run in which all is finished that claims read, the policy if that is wanted.

    Raises:
        UserError: something is missing; names the stage that makes it.
    """
    inputs = RunFolder.opened(run)
    for name in ("tokenize/training", "tokenize/validation", VOCABULARY):
        inputs.needed(name)
    _ = inputs.reference, policy and inputs.policy
    return inputs


def judged_scenes(store: Path, count: int, folder: Path) -> Path:
    """A store of ``count`` scenes spread over another; that one itself where it has no more, or count is 0.

    Args:
        folder: where the smaller one is written; kept if it holds the same scenes already.
    """
    source = SceneStore(store)
    if count == 0 or count >= len(source):
        return store
    rows = spread(len(source), count)
    ids = [source.ids[row] for row in rows]
    if not (is_store(folder) and SceneStore(folder).ids == ids):
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(folder / shard_name(_SPLIT, 0, 1), (source[row] for row in rows))
    return folder


def reference_checkpoint(spec: ReferenceSpec, root: Path) -> Path:
    """Where a reference is, once it is trained. Args: as of ``train_reference``."""
    stage = "finetune" if spec.finetune else "pretrain"
    return root / spec.name.replace(" ", "_") / stage / CHECKPOINT_FILE


def train_reference(spec: ReferenceSpec, config: ClaimsConfig, inputs: RunFolder, root: Path) -> Path:
    """Train a reference, or find it trained; an interrupted training goes on.

    Args:
        spec: what to train. config: options of both stages. inputs: of the run. root: folder of all references.

    Returns:
        Its checkpoint.
    """
    folder = root / spec.name.replace(" ", "_")
    vocabulary = inputs.needed(VOCABULARY)
    if spec.vocabulary:
        vocabulary = folder / "vocabulary.pt"
        if not vocabulary.exists():
            folder.mkdir(parents=True, exist_ok=True)
            steps = Vocabulary.load(inputs.needed(VOCABULARY)).token_steps
            options = dataclasses.replace(config.tokenize.vocabulary, size=spec.vocabulary, token_steps=steps)
            build_vocabulary(SceneStore(inputs.store("training")), options, 0).save(vocabulary)
    run_pretrain(
        dataclasses.replace(config.pretrain, size=spec.size, fit=_for_steps(config.pretrain.fit, spec.steps)),
        scenes=inputs.store("training"),
        vocabulary=vocabulary,
        out=folder / "pretrain",
    )
    if spec.finetune:
        run_finetune(
            dataclasses.replace(config.finetune, fit=_for_steps(config.finetune.fit, spec.finetune)),
            scenes=inputs.store("training"),
            checkpoint=folder / "pretrain" / CHECKPOINT_FILE,
            out=folder / "finetune",
        )
    return reference_checkpoint(spec, root)


def _for_steps(fit: FitConfig, steps: int) -> FitConfig:
    return dataclasses.replace(fit, steps=steps, warmup_steps=min(fit.warmup_steps, steps // 4))
