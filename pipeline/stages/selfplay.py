"""Stage ``selfplay``: a policy learns to drive among copies of itself, anchored to the frozen reference."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from data.errors import UserError
from data.files import atomic_write, sha256_of, write_text
from data.scene import Scene, map_tensors
from data.store import SceneStore
from data.vocabulary import LOAD_ERRORS
from models.policy import Policy, PolicyConfig, save_policy
from models.reference.agent import ReferenceAgent
from pipeline.progress import bar, track
from pipeline.selfplay.anchor import Anchor
from pipeline.selfplay.observation import ObservationConfig, feature_sizes
from pipeline.selfplay.ppo import PPOConfig, collect, update
from pipeline.selfplay.reward import RewardConfig
from pipeline.selfplay.simulator import controlled_agents
from pipeline.selfplay.worlds import World, build_world, stack_worlds

__all__ = ["POLICY_FILE", "SelfPlayConfig", "run_selfplay"]

POLICY_FILE = "policy.ckpt"
_TRAINING_FILE = "training.pt"
_TABLE_FILE = "metrics.csv"


@dataclass(frozen=True)
class SelfPlayConfig:
    """Anchored self-play.

    Args:
        agent_steps: transitions to train on; a transition is one decision of one controlled agent.
        worlds: scenes simulated at once.
        pool: scenes of the training split to draw from, spread evenly; 0 for all.
        max_agents: scenes with more simulated agents are left out, which bounds padding.
        checkpoint_every: updates between checkpoints for going on after an interruption.
        device: cpu or cuda.
        policy: size of the net.
        view: what agents see.
        reward: what events are worth.
        ppo: optimisation and anchor.
    """

    agent_steps: int = 400_000
    worlds: int = 24
    pool: int = 96
    max_agents: int = 64
    checkpoint_every: int = 2
    device: str = "cpu"
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    view: ObservationConfig = field(default_factory=ObservationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def __post_init__(self) -> None:
        if self.agent_steps < 1 or self.worlds < 1 or self.checkpoint_every < 1 or self.ppo.minibatch < 2:
            raise UserError("selfplay: agent_steps, worlds and checkpoint_every must be at least 1, minibatch 2")


def _choose_scenes(store: SceneStore, config: SelfPlayConfig) -> list[int]:
    """Scenes to draw from, spread over the store."""
    usable = [index for index, info in enumerate(store.infos) if info.simulated <= config.max_agents]
    if not usable:
        raise UserError(f"{store.folder}: no scene with at most {config.max_agents} agents; raise --max_agents")
    count = min(config.pool or len(usable), len(usable))
    return [usable[index * len(usable) // count] for index in range(count)]


def _fingerprint(config: SelfPlayConfig, seed: int, reference: Path, ids: list[str]) -> str:
    values = repr((dataclasses.asdict(config), seed, sha256_of(reference), ids))
    return hashlib.sha256(values.encode()).hexdigest()


@dataclass
class _Training:
    """What changes from update to update, and goes into a checkpoint."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    updates: int = 0
    agent_steps: int = 0
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def save(self, path: Path, fingerprint: str) -> None:
        content = {
            "fingerprint": fingerprint,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
            "agent_steps": self.agent_steps,
            "rows": self.rows,
        }
        atomic_write(path, lambda file: torch.save(content, file))

    def restore(self, path: Path, fingerprint: str) -> None:
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except LOAD_ERRORS as error:
            raise UserError(f"{path}: damaged checkpoint; delete {path.parent} and train again") from error
        if content["fingerprint"] != fingerprint:
            raise UserError(f"{path}: an interrupted training with other settings or data; delete it to start anew")
        self.policy.load_state_dict(content["policy"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.updates, self.agent_steps, self.rows = content["updates"], content["agent_steps"], content["rows"]


def _seed_of(seed: int, update_number: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}/{update_number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def run_selfplay(
    config: SelfPlayConfig, *, scenes: Path, reference: Path, out: Path, seed: int = 0
) -> dict[str, float]:
    """Train a policy by self-play with PPO, anchored to a reference.

    Args:
        config: of the stage.
        scenes: store of the training split.
        reference: checkpoint of the frozen reference; its vocabulary is the policy's actions.
        out: where policy.ckpt and metrics.csv go.
        seed: of weights, worlds, actions and minibatches; the randomness of update u depends on (seed, u) alone.

    Raises:
        UserError: no store, not a reference checkpoint, no usable scene.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    out.mkdir(parents=True, exist_ok=True)
    store = SceneStore(scenes)
    agent = ReferenceAgent.from_checkpoint(reference, device=config.device)
    vocabulary = agent.vocabulary
    loaded: list[Scene] = []
    pool: list[World] = []
    chosen = _choose_scenes(store, config)
    for scene in track((store[index] for index in chosen), "worlds", len(chosen), " scene"):
        world = build_world(scene, vocabulary.to("cpu"), config.view.road_segments)
        # A world in which nobody is controlled has nothing to learn from.
        if bool(controlled_agents(world, config.ppo.vehicles_only).any()):
            loaded.append(scene)
            pool.append(world)
    if not pool:
        raise UserError(
            f"{scenes}: no scene has a moving vehicle to control; use more scenes, or control all agents"
        )
    anchor = Anchor(agent, loaded) if config.ppo.beta or config.ppo.alpha else None
    fabric = Fabric(accelerator=config.device, devices=1)
    torch.manual_seed(_seed_of(seed, 0, "weights"))
    policy = Policy(config.policy, feature_sizes(config.view), vocabulary.ends)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.ppo.learning_rate, eps=1e-5)
    fingerprint = _fingerprint(config, seed, reference, [str(scene.scenario_id) for scene in loaded])
    training = _Training(policy, optimizer)
    interrupted = out / _TRAINING_FILE
    if interrupted.exists():
        training.restore(interrupted, fingerprint)
    wrapped, wrapped_optimizer = fabric.setup(policy, optimizer)
    started = time.perf_counter()
    before = training.agent_steps
    with bar("selfplay", config.agent_steps, " steps", initial=min(before, config.agent_steps)) as progress:
        while training.agent_steps < config.agent_steps:
            number = training.updates
            rng = np.random.default_rng(_seed_of(seed, number, "worlds"))
            names = rng.choice(len(pool), size=min(config.worlds, len(pool)), replace=False).tolist()
            batch = map_tensors(stack_worlds([pool[name] for name in names]), lambda t: t.to(fabric.device))
            torch.manual_seed(_seed_of(seed, number, "dropout"))
            generator = torch.Generator(fabric.device).manual_seed(_seed_of(seed, number, "actions"))
            wrapped.eval()

            score = None if anchor is None else partial(anchor.log_probs, names, batch)
            episode = collect(
                wrapped,
                batch,
                vocabulary,
                score,
                config.ppo,
                config.reward,
                config.view,
                generator,
            )
            wrapped.train()
            figures = update(fabric, wrapped, wrapped_optimizer, episode, config.ppo, generator)
            training.updates += 1
            training.agent_steps += episode.transitions
            training.rows.append({"agent_steps": float(training.agent_steps), **episode.rates, **figures})
            if training.updates % config.checkpoint_every == 0 or training.agent_steps >= config.agent_steps:
                training.save(interrupted, fingerprint)
            progress.set_postfix_str(_postfix(training.rows[-1]), refresh=False)
            progress.update(min(training.agent_steps, config.agent_steps) - progress.n)
    seconds = time.perf_counter() - started
    _write_table(out / _TABLE_FILE, training.rows)
    save_policy(out / POLICY_FILE, policy, vocabulary, dataclasses.asdict(config.view))
    interrupted.unlink(missing_ok=True)
    last = training.rows[-1]
    return {
        "updates": training.updates,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        **{name: round(value, 5) for name, value in last.items()},
        "first_kl": round(training.rows[0]["kl"], 5),
        "trained_agent_steps_per_second": round((training.agent_steps - before) / seconds, 1),
    }


def _postfix(row: dict[str, float]) -> str:
    return f"KL {row['kl']:.3f}, collision {row['collision_rate']:.3f}, off-road {row['off_road_rate']:.3f}"


def _write_table(path: Path, rows: list[dict[str, float]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    write_text(path, table.getvalue())
