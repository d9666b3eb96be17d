"""The loop of self-play: worlds, an episode, an update, figures, and checkpoints to go on from."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from data.errors import UserError
from data.files import atomic_write, sha256_of
from data.scene import Scene, map_tensors
from data.store import SceneStore, check_disjoint
from data.vocabulary import LOAD_ERRORS
from models.checkpoints import merge_digests, scene_digests, trained_on
from models.policy import Policy, save_policy
from pipeline.agents.closed_loop import closed_loop_figures
from pipeline.agents.leaks import check_unseen
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.execution.manifest import deciding
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.episode import Episode, Scorer, collect
from pipeline.selfplay.journal import Journal, Row
from pipeline.selfplay.judges import Judge, label_scores, load_judge, logged_tokens
from pipeline.selfplay.pool import Schedule, WorldPool
from pipeline.selfplay.ppo import update
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import feature_sizes
from pipeline.simulator.step import decisions
from pipeline.simulator.world import World, stack_worlds

__all__ = ["BEST_FILE", "POLICY_FILE", "TRAINING_FILE", "Training"]

POLICY_FILE, BEST_FILE, TRAINING_FILE = "policy.ckpt", "best.ckpt", "training.pt"


@dataclass
class _Progress:
    """What changes from update to update, and goes into a checkpoint."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    updates: int = 0
    agent_steps: int = 0
    idle: int = 0  # worlds in a row in which there was nobody to control
    best: float = -1.0
    rows: list[Row] = field(default_factory=list)

    _PLAIN = ("updates", "agent_steps", "idle", "best", "rows")

    def save(self, path: Path, fingerprint: str) -> None:
        content = {
            "fingerprint": fingerprint,
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: getattr(self, name) for name in self._PLAIN},
        }
        atomic_write(path, lambda file: torch.save(content, file))

    def restore(self, path: Path, fingerprint: str, keep: bool) -> None:
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except LOAD_ERRORS as error:
            raise UserError(f"{path}: damaged checkpoint; delete {path.parent} and train again") from error
        if content["fingerprint"] != fingerprint and not keep:
            raise UserError(
                f"{path}: an interrupted training with other settings or data; go on with it by --keep, start over "
                "by --fresh, or choose another --out"
            )
        try:
            self.policy.load_state_dict(content["policy"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--keep: {path}: the checkpoint of another network; leave --keep out, or give its options"
            ) from error
        for name in self._PLAIN:
            setattr(self, name, content[name])


@dataclass(frozen=True)
class Training:
    """What a process needs to know to train; see ``run_selfplay``."""

    config: SelfPlayConfig
    scenes: Path
    reference: Path
    out: Path
    seed: int
    validation: Path | None
    keep: bool = False

    def __call__(self, fabric: Fabric) -> dict[str, float]:
        """On several devices every process does this, and the first one writes.

        Returns:
            The last row of figures, and how much was done.

        Raises:
            UserError: as ``run_selfplay``.
        """
        return _train(fabric, self)


def _train(fabric: Fabric, asked: Training) -> dict[str, float]:
    config, reference, out, seed = asked.config, asked.reference, asked.out, asked.seed
    judge, view = load_judge(reference, fabric.device, config.cache_worlds)
    if view is not None and view != dataclasses.asdict(config.view):
        raise UserError(f"{reference}: this policy sees other things than --view.*; give it the same view")
    store = SceneStore(asked.scenes)
    held_out = _held_out(asked.validation, config, store, reference)
    chosen = _choose_scenes(store, config)
    pool = WorldPool(
        store,
        chosen,
        judge.vocabulary.to("cpu"),
        config.view.road_segments,
        config.cache_worlds,
        config.workers,
    )
    torch.manual_seed(_seed_of(seed, 0, "weights"))
    policy = Policy(config.policy, feature_sizes(config.view), judge.vocabulary.ends.cpu())
    learnt = scene_digests(store.infos[index].scenario_id for index in chosen)
    policy.trained_on = merge_digests(trained_on(reference), learnt)
    # Before the optimiser's state is read: it goes where the weights are then, and does not follow them later.
    policy.to(fabric.device)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.ppo.learning_rate, eps=1e-5)
    training = _Progress(policy, optimizer)
    fingerprint = _fingerprint(config, seed, reference, store, held_out)
    interrupted = out / TRAINING_FILE
    if interrupted.exists():
        training.restore(interrupted, fingerprint, asked.keep)
    fabric.barrier()
    before, started = training.agent_steps, time.perf_counter()
    journal = Journal(out, config.agent_steps, training.rows, config.tensorboard, fabric.is_global_zero)
    loop = _Loop(fabric, config, judge, pool, training, journal, held_out, out, seed, fingerprint)
    try:
        while training.agent_steps < config.agent_steps:
            loop.update()
    finally:
        journal.close()
        pool.close()
    seconds = time.perf_counter() - started
    if fabric.is_global_zero:
        journal.write_table()
        save_policy(out / POLICY_FILE, policy, judge.vocabulary.to("cpu"), dataclasses.asdict(config.view))
        interrupted.unlink(missing_ok=True)
    last = training.rows[-1]
    return {
        "updates": training.updates,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        **{name: round(value, 5) for name, value in last.items()},
        "first_kl": round(training.rows[0]["kl"], 5),
        "trained_agent_steps_per_second": round((training.agent_steps - before) / seconds, 1),
    }


class _Loop:
    """One update after the other."""

    def __init__(
        self,
        fabric: Fabric,
        config: SelfPlayConfig,
        judge: Judge,
        pool: WorldPool,
        training: _Progress,
        journal: Journal,
        held_out: Sequence[Scene],
        out: Path,
        seed: int,
        fingerprint: str,
    ) -> None:
        self._fabric, self._config, self._judge, self._pool = fabric, config, judge, pool
        self._training, self._journal, self._held_out = training, journal, held_out
        self._out, self._seed, self._fingerprint = out, seed, fingerprint
        vocabulary = judge.vocabulary
        self._schedule = Schedule(
            len(pool), config.worlds, config.turnover or config.worlds, _seed_of(seed, 0, "worlds")
        )
        self._simulator = Simulator(vocabulary, config.view, config.reward, config.compile)
        self._policy, self._optimizer = fabric.setup(training.policy, training.optimizer)
        self._driver: nn.Module = self._policy
        if config.compile:
            self._driver = cast(nn.Module, torch.compile(self._policy, dynamic=True))
        # On a CPU the compiled backward pass takes longer than the plain one (make bench ONLY=selfplay).
        self._learner = self._driver if fabric.device.type == "cuda" else self._policy

    def update(self) -> None:
        """Collect, learn, and note what happened."""
        config, training, fabric = self._config, self._training, self._fabric
        number = training.updates
        started = time.perf_counter()
        names, world = self._worlds(number)
        built = time.perf_counter()
        torch.manual_seed(_seed_of(self._seed, number, f"dropout {fabric.global_rank}"))
        self._policy.eval()
        episode = self._collect(number, names, world)
        counts = torch.tensor([episode.agent_steps, episode.transitions], device=fabric.device)
        steps, learnt = _summed(fabric, counts).tolist()
        training.updates += 1
        if not learnt:
            self._nobody()
            return
        training.idle = 0
        collected = time.perf_counter()
        self._policy.train()
        generator = torch.Generator().manual_seed(_seed_of(self._seed, number, "minibatches"))
        share = training.agent_steps / config.agent_steps
        figures = update(fabric, self._learner, self._optimizer, episode, config.ppo, generator, share)
        training.agent_steps += steps
        row = {"agent_steps": float(training.agent_steps), **_means(fabric, episode.sums), **figures}
        row |= self._evaluate()
        ended = time.perf_counter()
        row |= {f"seconds_{phase}": seconds for phase, seconds in episode.seconds.items()}
        row |= {"seconds_worlds": built - started, "seconds_learn": ended - collected}
        row["steps_per_second"] = steps / (ended - started)
        self._journal.add(row)
        done = training.agent_steps >= config.agent_steps
        if fabric.is_global_zero and (training.updates % config.checkpoint_every == 0 or done):
            training.save(self._out / TRAINING_FILE, self._fingerprint)

    def _worlds(self, number: int) -> tuple[list[int], World]:
        """This device's share of the update's worlds; those of the next one are begun."""
        each = self._config.worlds // self._fabric.world_size
        mine = slice(self._fabric.global_rank * each, (self._fabric.global_rank + 1) * each)
        names = self._schedule.names(number)[mine]
        worlds = self._pool.take(names)
        self._pool.prepare(self._schedule.names(number + 1)[mine])
        return names, map_tensors(stack_worlds(worlds), lambda t: t.to(self._fabric.device, non_blocking=True))

    def _collect(self, number: int, names: list[int], world: World) -> Episode:
        config, vocabulary = self._config, self._judge.vocabulary
        # Drawn for all slots of all devices: what a slot does depends neither on padding nor on who simulates it.
        generator = torch.Generator().manual_seed(_seed_of(self._seed, number, "actions"))
        shape = (decisions(vocabulary) + 2, config.worlds, config.max_agents)
        first = self._fabric.global_rank * len(names)
        uniform = torch.rand(shape, generator=generator)[:, first : first + len(names), : world.types.shape[1]]
        logged, score = None, self._scorer(names, world)
        if config.driver == "log":
            logged = logged_tokens(world, vocabulary)
            score = partial(label_scores, vocabulary.size)
        return collect(
            self._driver, self._simulator, world, score, config.ppo, uniform.to(self._fabric.device), logged
        )

    def _scorer(self, names: list[int], world: World) -> Scorer | None:
        asked = self._config.ppo.anchored or self._config.ppo.compared
        return self._judge.scorer(self._pool, names, world) if asked else None

    def _nobody(self) -> None:
        self._training.idle += self._config.worlds
        if self._training.idle >= 2 * len(self._pool):
            what = "moving vehicle" if self._config.ppo.driven == "vehicles" else "moving agent"
            raise UserError(f"no scene has a {what} to control; use more scenes, or control all agents")

    def _evaluate(self) -> Row:
        """Figures of the fixed evaluation, if it is due; the best policy by realism is kept."""
        config, training = self._config, self._training
        due = config.evaluate_every and training.updates % config.evaluate_every == 0
        ended = training.agent_steps >= config.agent_steps
        if not self._held_out or not (due or (config.evaluate_every and ended)):
            return {}
        figures: Row = {}
        if self._fabric.is_global_zero:
            agent = PolicyAgent(training.policy, self._judge.vocabulary, config.view)
            found = closed_loop_figures(agent, self._held_out, config.evaluate_rollouts, self._seed)
            figures = {f"evaluation_{name}": value for name, value in found.items()}
            self._journal.add_rollout(agent, self._held_out[0], training.agent_steps, self._seed)
            if found.get("realism", -1.0) > training.best:
                training.best = found["realism"]
                vocabulary, view = self._judge.vocabulary.to("cpu"), dataclasses.asdict(config.view)
                save_policy(self._out / BEST_FILE, training.policy, vocabulary, view)
        self._fabric.barrier()
        return figures


def _choose_scenes(store: SceneStore, config: SelfPlayConfig) -> list[int]:
    """Scenes to draw from, spread over the store."""
    usable = [index for index, info in enumerate(store.infos) if info.simulated <= config.max_agents]
    if not usable:
        raise UserError(f"{store.folder}: no scene with at most {config.max_agents} agents; raise --max_agents")
    count = min(config.pool or len(usable), len(usable))
    return [usable[index * len(usable) // count] for index in range(count)]


def _held_out(
    validation: Path | None, config: SelfPlayConfig, training: SceneStore, reference: Path
) -> list[Scene]:
    """Scenes of the evaluation, none of which anything was trained on."""
    if validation is None:
        return []
    store = SceneStore(validation)
    check_disjoint(training, store)
    check_unseen(reference, validation, store.ids)
    if not config.evaluate_every:
        return []
    count = min(config.evaluate_scenes, len(store))
    return [store[(2 * index + 1) * len(store) // (2 * count)] for index in range(count)]


def _fingerprint(
    config: SelfPlayConfig, seed: int, reference: Path, store: SceneStore, held_out: Sequence[Scene]
) -> str:
    ids = [list(store.ids), [str(scene.scenario_id) for scene in held_out]]
    # How it is computed may change on the way; what is computed may not.
    values = repr((deciding(dataclasses.asdict(config)), seed, sha256_of(reference), ids))
    return hashlib.sha256(values.encode()).hexdigest()


def _summed(fabric: Fabric, tensor: Tensor) -> Tensor:
    total = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def _means(fabric: Fabric, sums: Mapping[str, Tensor]) -> Row:
    total = _summed(fabric, torch.stack(list(sums.values())))
    means = total[:, 0] / total[:, 1].clamp(min=1)
    return dict(zip(sums, means.tolist(), strict=True))


def _seed_of(seed: int, update_number: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}/{update_number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
