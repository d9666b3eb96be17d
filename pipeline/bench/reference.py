"""The reference: speed and memory of training and rollouts, compared with CAT-K.

CAT-K cannot run here, because of its licence and its compiled extensions. Its figures were measured once with its
own code on two cores of an AMD EPYC (one thread, CPU seconds), for two real scenarios, with tokens of 0.5 s and a
vocabulary of 2,048. Machines differ, so the ratios are approximate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from data.batch import collate
from data.scene import Scene, map_tensors
from data.vocabulary import Vocabulary, VocabularyConfig, build_vocabulary
from models.reference.agent import ReferenceAgent
from models.reference.augmentation import AugmentationConfig, augment, draw_for
from models.reference.config import size_preset
from models.reference.inputs import SceneInputs, collate_inputs, keep_agents
from models.reference.loss import loss_mask, token_loss
from models.reference.network import Reference
from models.reference.recording import prune_map, recording_inputs, recording_of
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.bench.rows import Row, cpu_seconds, fresh, known_pair, load_scenes, peak_memory_mb
from pipeline.execution.devices import Clock

_ROLLOUTS = 32
_STEPS = 3
# (size, index of the known scene) to agent-tokens (agents times 18 tokens) per CPU second of training on one scene.
_CATK_TOKENS = {("tiny", 0): 45.0, ("tiny", 1): 118.0, ("mini", 0): 75.0, ("mini", 1): 196.0}
# Peak memory of training by size, MB.
_CATK_MEMORY = {"tiny": 8000.0, "mini": 4800.0}
# (size, scenario) to CPU seconds of 32 rollouts: 32 times that of one, since they are serial.
_CATK_ROLLOUTS = {("tiny", 0): 183.0, ("tiny", 1): 166.0, ("mini", 0): 107.0}
_VOCABULARIES = {"0.5 s, K 2048": VocabularyConfig(size=2048, token_steps=5), "0.2 s, K 200": VocabularyConfig()}
_SIZES = ("nano", "mini", "tiny")


def _model(size: str, words: Vocabulary) -> Reference:
    torch.manual_seed(0)
    return Reference(size_preset(size), words)


class TrainingStep:
    """One optimisation step on some scenes; each call makes a step.

    On a CPU it augments and tokenises. On a GPU the loader's processes do that meanwhile, and it copies the result.

    Args:
        scenes: single scenes. model: on the device to train on. words: its vocabulary, on the CPU.
        precision: of ``torch.autocast``, or None.

    Attributes:
        tokens: agents times tokens in a step, without padding. seconds: of the last step, by phase.
    """

    def __init__(
        self, scenes: Sequence[Scene], model: Reference, words: Vocabulary, precision: torch.dtype | None = None
    ) -> None:
        self._model, self._precision = model, precision
        self.device = model.motion.device
        recordings, draws = [], []
        for row, scene in enumerate(scenes):
            recording = recording_of(collate([keep_agents(scene, 256)]))
            pruned = prune_map(recording_inputs(recording, words), model.config, words.token_steps)
            recordings.append(dataclasses.replace(recording, pieces=pruned.pieces))
            agents, steps = recording.valid.shape[1:]
            draws.append(draw_for(0, 0, row, agents, (steps - 1) // words.token_steps))
        self.tokens = sum(part.token[..., 0].numel() for part in draws)
        self._recording, self._draws, self._words = collate_inputs(recordings), collate_inputs(draws), words
        self._ready = self.inputs() if self.device.type == "cpu" else self.inputs().pin_memory()
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.seconds: dict[str, float] = {}

    @torch.no_grad()
    def inputs(self) -> SceneInputs:
        """Augmented and tokenised scenes, on the CPU."""
        return recording_inputs(augment(self._recording, self._draws, AugmentationConfig()), self._words)

    def copied(self) -> SceneInputs:
        """Ready inputs on the device."""
        return map_tensors(self._ready, lambda tensor: tensor.to(self.device, non_blocking=True))

    def loss(self, inputs: SceneInputs) -> Tensor:
        """Mean over the tokens with a loss."""
        mask = loss_mask(inputs)
        with torch.autocast(self.device.type, self._precision, enabled=self._precision is not None):
            logits = self._model(inputs)
        return (token_loss(logits, inputs.target) * mask).sum() / mask.sum()

    def __call__(self) -> None:
        clock = Clock(self.device)
        if self.device.type == "cpu":
            inputs = self.inputs()
            clock.lap("augment and tokenise")
        else:
            inputs = self.copied()
            clock.lap("copy")
        loss = self.loss(inputs)
        clock.lap("forward")
        self._optimizer.zero_grad()
        loss.backward()
        clock.lap("backward")
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 0.5)
        self._optimizer.step()
        clock.lap("optimiser")
        self.seconds = clock.seconds()


def _training(scene: Scene, size: str, words: Vocabulary, recompute: bool = False) -> tuple[float, float]:
    """CPU seconds of one optimisation step on a scene, and the peak memory."""
    torch.set_num_threads(1)
    model = _model(size, words)
    model.recompute = recompute
    step = TrainingStep([scene], model, words)
    step()
    return cpu_seconds(step, _STEPS), peak_memory_mb()


def _sampling(scene: Scene, size: str, words: Vocabulary, compiled: bool = False) -> tuple[float, float]:
    torch.set_num_threads(1)
    agent = ReferenceDriver(ReferenceAgent(_model(size, words), compiled))
    agent.rollouts(scene, _ROLLOUTS if compiled else 1, 0)
    return cpu_seconds(lambda: agent.rollouts(scene, _ROLLOUTS, 0)), peak_memory_mb()


def _loading(scenes: list[Scene], words: Vocabulary) -> float:
    """Scenes per second of one loader, with parsed scenes whose maps are not cut and pruned yet."""
    torch.set_num_threads(1)
    config = size_preset("nano")

    def load() -> None:
        for scene in scenes:
            recording = recording_of(collate([keep_agents(scene, 32)]))
            prune_map(recording_inputs(recording, words), config, words.token_steps)

    return len(scenes) / cpu_seconds(load)


def bench() -> list[Row]:
    kind, scenes = load_scenes()
    pair, known = known_pair(scenes)
    rows = []
    for title, config in _VOCABULARIES.items():
        words = build_vocabulary(scenes, dataclasses.replace(config, max_segments=20_000), 0)
        comparable = known and words.token_steps == 5
        for size in _SIZES:
            million = sum(p.numel() for p in _model(size, words).parameters()) / 1e6
            for number, scene in enumerate(pair):
                agents = int(scene.simulated.sum())
                name = f"{size} {million:.1f}M, {title}, {kind}, {agents} agents"
                slots = agents * (90 // words.token_steps)
                # Recomputation saves memory of the larger networks.
                modes = {"train": False, "train, computing again": True} if comparable else {"train": False}
                for mode, recompute in modes.items():
                    seconds, memory = fresh(partial(_training, scene, size, words, recompute))
                    theirs = _CATK_TOKENS.get((size, number)) if comparable else None
                    ratio = None if theirs is None else slots / seconds / theirs
                    rows.append(Row(f"{mode}, {name}", slots / seconds, "agent-tokens/CPU s", theirs, ratio))
                    theirs = _CATK_MEMORY.get(size) if comparable else None
                    ratio = None if theirs is None else theirs / memory
                    rows.append(Row(f"{mode}, {name}", memory, "MB peak", theirs, ratio))
                seconds, memory = fresh(partial(_sampling, scene, size, words))
                theirs = _CATK_ROLLOUTS.get((size, number)) if comparable else None
                ratio = None if theirs is None else theirs / seconds
                rows.append(Row(f"{_ROLLOUTS} rollouts, {name}", seconds, "CPU s", theirs, ratio))
                rows.append(Row(f"{_ROLLOUTS} rollouts, {name}", memory, "MB peak"))
                if ratio is not None and theirs is not None:
                    seconds, _ = fresh(partial(_sampling, scene, size, words, compiled=True))
                    rows.append(
                        Row(f"{_ROLLOUTS} rollouts compiled, {name}", seconds, "CPU s", theirs, theirs / seconds)
                    )
    words = build_vocabulary(scenes, VocabularyConfig(max_segments=20_000), 0)
    seconds, memory = fresh(partial(_sampling, pair[0], "nano", words, compiled=True))
    name = f"{_ROLLOUTS} rollouts compiled, nano, 0.2 s, K 200, {kind}, {int(pair[0].simulated.sum())} agents"
    rows += [Row(name, seconds, "CPU s"), Row(name, memory, "MB peak")]
    rows.append(Row(f"loader without its memory, {kind}", fresh(partial(_loading, scenes, words)), "scenes/CPU s"))
    return rows
