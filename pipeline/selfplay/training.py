"""Self-play with PPO, anchored to a frozen model: collect, advantages, update, log, save.

    reward   r = r_task + alpha * log pi_ref(a | s)                       (``rollout.collect``)
    loss     clipped PPO + value loss + entropy bonus + beta * KL         (``ppo.ppo_loss``)

``train`` is the whole story. On several devices each process runs it on its own worlds, and the first one writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from data.errors import UserError
from data.files import atomic_write, sha256_of
from data.scene import AgentType, Scene
from data.store import SceneStore
from data.vocabulary import LOAD_ERRORS, Vocabulary, load_saved
from models.checkpoints import merge_digests, scene_digests, trained_on
from models.policy import Policy, load_policy, save_policy
from models.reference.agent import ReferenceAgent
from pipeline.agents.closed_loop import closed_loop_figures
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.drawing.training_log import TrainingLog, write_table
from pipeline.execution.console import say
from pipeline.execution.devices import summed
from pipeline.execution.manifest import deciding
from pipeline.selfplay.anchor import (
    Anchor,
    LogScorer,
    PolicyScorer,
    ReferenceScorer,
    given_tokens,
    load_anchor,
)
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.driver import Driver
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.pool import Schedule, WorldPool, choose_scenes, held_out_scenes
from pipeline.selfplay.ppo import Scale
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import feature_sizes
from pipeline.simulator.step import decisions
from pipeline.simulator.world import World

POLICY_FILE, BEST_FILE, TRAINING_FILE = "policy.ckpt", "best.ckpt", "training.pt"
Row = dict[str, float]
# Where TensorBoard groups the figures; the first prefix that fits, or ``ppo``.
_GROUPS = {
    "evaluation_": "evaluation",
    "reward_": "reward",
    "seconds_": "seconds",
    "steps_per_second": "speed",
    "kl": "anchor",
    "log_likelihood": "anchor",
    "reference_coverage": "anchor",
    "entropy": "anchor",
    "collision_rate": "events",
    "off_road_rate": "events",
    "red_light_rate": "events",
    "goal_rate": "events",
}
# Figures of speed differ from run to run; the table must be the same after an interruption, so it leaves them out.
_VOLATILE = ("seconds_", "steps_per_second")


def train(
    fabric: Fabric,
    config: SelfPlayConfig,
    *,
    scenes: Path,
    reference: Path,
    out: Path,
    seed: int,
    validation: Path | None = None,
    start: Path | None = None,
    keep: bool = False,
) -> dict[str, float]:
    """Train a policy on the devices of a fabric; other arguments and errors as ``run_selfplay``.

    Returns:
        The last row of figures, and how much was done.
    """
    # Data, anchor, policy.
    frozen, vocabulary, view = load_anchor(reference, fabric.device)
    if view is not None and view != dataclasses.asdict(config.view):
        raise UserError(f"{reference}: this policy sees other things than --view.*; give it the same view")
    store = SceneStore(scenes)
    held_out = held_out_scenes(validation, config, store, reference)
    pool_rows = choose_scenes(store, config)
    # CUDA graphs need the same number of agents in every update: the rest are some that do not exist.
    on_gpu, view_size = fabric.device.type == "cuda", config.view.listed_segments
    words = vocabulary.to("cpu")
    pool = WorldPool(
        store, pool_rows, words, view_size, config.cache_worlds, config.workers, fabric.device, empty_agent=on_gpu
    )
    anchor = _anchor(config, frozen, pool, vocabulary)
    schedule = Schedule(len(pool), config.worlds, config.turnover or config.worlds, _seed_of(seed, 0, "worlds"))
    # On a GPU the episode is a graph, which compiled code makes little faster and takes minutes to compile.
    simulator = Simulator(
        vocabulary, config.view, config.reward, config.compile and not on_gpu, config.policy.own_critic
    )
    torch.manual_seed(_seed_of(seed, 0, "weights"))
    bare_policy = Policy(config.policy, feature_sizes(config.view), vocabulary.ends.cpu())
    learnt = scene_digests(store.infos[index].scenario_id for index in pool_rows)
    bare_policy.trained_on = merge_digests(trained_on(reference), learnt)
    if start is not None:
        _start_from(start, bare_policy, vocabulary, config)
    # The optimiser's state is read after this: it goes where the weights are, and does not follow them later.
    bare_policy.to(fabric.device)
    state = _State(bare_policy)
    fingerprint = _fingerprint(config, seed, [reference] if start is None else [reference, start], store, held_out)
    if (out / TRAINING_FILE).exists():
        state.restore(out / TRAINING_FILE, fingerprint, keep)
    fabric.barrier()
    phases, phase, total = config.phases, None, config.phases[-1].end
    before, started = state.agent_steps, time.perf_counter()
    is_first = fabric.is_global_zero
    log = TrainingLog(out, "selfplay", total, before, config.tensorboard and is_first, is_first)

    try:
        while state.agent_steps < total:
            number, clock = state.updates, [time.perf_counter()]
            ahead = next(one for one in phases if state.agent_steps < one.end)
            if ahead is not phase:
                phase = ahead
                learner = Learner(fabric, bare_policy, phase.ppo, config.compile)
                driver = Driver(learner, simulator, pool.resident)
                state.enter(learner, phases.index(phase))
            progress = phase.progress(state.agent_steps)

            # Collect.
            scene_index = _slots_of(fabric, schedule.scene_index(number))
            world = pool.take(scene_index)
            pool.prepare(_slots_of(fabric, schedule.scene_index(number + 1)))
            clock.append(time.perf_counter())
            torch.manual_seed(_seed_of(seed, number, f"dropout {fabric.global_rank}"))
            bare_policy.eval()
            uniform = _uniform(fabric, config, world, _seed_of(seed, number, "actions"), decisions(vocabulary))
            compares = phase.ppo.compares or config.anchor == "log"
            score = partial(anchor.scores, scene_index, world) if anchor is not None and compares else None
            given = given_tokens(phase.driver, frozen, pool.scene, scene_index, world, uniform)
            rollout = driver.collect(scene_index, world, score, uniform, given)
            counts = torch.tensor([rollout.agent_steps, rollout.transitions], device=fabric.device)
            steps, transitions = summed(fabric, counts).tolist()
            state.updates += 1
            if not transitions:
                state.idle += config.worlds
                if state.idle >= 2 * len(pool):
                    kind = "moving vehicle" if config.ppo.driven == "vehicles" else "moving agent"
                    raise UserError(f"no scene has a {kind} to control; use more scenes, or control all agents")
                continue
            state.idle = 0
            clock.append(time.perf_counter())

            # Learn.
            bare_policy.train()
            order = torch.Generator().manual_seed(_seed_of(seed, number, "minibatches"))
            figures = learner.update(rollout, order, progress)
            state.agent_steps += steps

            # Evaluate and log.
            row = {"agent_steps": float(state.agent_steps), **_means(fabric, rollout.sums), **figures}
            if given is not None:
                # Actions that are not the policy's say nothing about it.
                for name in ("kl_moving", "surrogate", "clip_fraction", "policy_change"):
                    del row[name]
            over = state.agent_steps >= total
            if held_out and config.evaluate_every and (over or state.updates % config.evaluate_every == 0):
                if is_first:
                    agent = PolicyAgent(state.policy, vocabulary, config.view)
                    row |= _evaluate(agent, held_out, config, seed, state, out / BEST_FILE)
                    log.film(agent, held_out[0], state.agent_steps, seed)
                fabric.barrier()
            clock.append(time.perf_counter())
            row |= {f"seconds_{phase}": seconds for phase, seconds in rollout.seconds.items()}
            row |= {"seconds_worlds": clock[1] - clock[0], "seconds_learn": clock[3] - clock[2]}
            row["steps_per_second"] = steps / (clock[3] - clock[0])
            state.rows.append({name: value for name, value in row.items() if not name.startswith(_VOLATILE)})
            log.add({f"{_group(name)}/{name}": value for name, value in row.items()}, state.agent_steps, _text(row))

            # Save.
            if is_first and (over or state.updates % config.checkpoint_every == 0):
                state.save(out / TRAINING_FILE, fingerprint)
    finally:
        log.close()
        pool.close()

    seconds = time.perf_counter() - started
    if is_first:
        columns = list(dict.fromkeys(name for row in state.rows for name in row))
        write_table(out, columns, [{name: f"{value:.6g}" for name, value in row.items()} for row in state.rows])
        save_policy(out / POLICY_FILE, state.policy, vocabulary.to("cpu"), dataclasses.asdict(config.view))
        (out / TRAINING_FILE).unlink(missing_ok=True)
    return {
        "updates": state.updates,
        "parameters": sum(parameter.numel() for parameter in state.policy.parameters()),
        **{name: round(value, 5) for name, value in state.rows[-1].items()},
        **(_best_figures(state.best_row, config.evaluate_least_speed) if is_first else {}),
        "first_kl": round(state.rows[0]["kl"], 5),
        "trained_agent_steps_per_second": round((state.agent_steps - before) / seconds, 1),
    }


@dataclass
class _State:
    """What changes from update to update, and is saved to go on after an interruption."""

    policy: Policy
    learner: Learner | None = None
    phase: int = 0
    updates: int = 0
    agent_steps: int = 0
    idle: int = 0  # worlds in a row without an agent to control
    best_row: Row = field(default_factory=dict)  # figures of the best policy
    rows: list[Row] = field(default_factory=list)
    saved: dict[str, Any] = field(default_factory=dict)  # what a restored learner goes on with

    _PLAIN = ("phase", "updates", "agent_steps", "idle", "best_row", "rows")

    def enter(self, learner: Learner, phase: int) -> None:
        """Go on with the learner of a phase, where it was saved if it was."""
        if self.saved and phase == self.phase:
            learner.load_state_dict(self.saved["optimizer"])
            if learner.scale is not None:
                learner.scale = Scale(**self.saved["scale"])
        self.learner, self.phase, self.saved = learner, phase, {}

    def save(self, path: Path, fingerprint: str) -> None:
        assert self.learner is not None
        content = {
            "fingerprint": fingerprint,
            "policy": self.policy.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "scale": vars(self.learner.scale) if self.learner.scale is not None else {},
            **{name: getattr(self, name) for name in self._PLAIN},
        }
        atomic_write(path, lambda file: torch.save(content, file))

    def restore(self, path: Path, fingerprint: str, keep: bool) -> None:
        try:
            content: dict[str, Any] = load_saved(path)
        except LOAD_ERRORS as error:
            raise UserError(f"{path}: damaged checkpoint; delete {path.parent} and train again") from error
        if content["fingerprint"] != fingerprint and not keep:
            raise UserError(
                f"{path}: an interrupted training with other settings or data; go on with it by --keep, start over "
                "by --fresh, or choose another --out"
            )
        try:
            self.policy.load_state_dict(content["policy"])
            self.saved = {name: content.get(name, {}) for name in ("optimizer", "scale")}
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--keep: {path}: the checkpoint of another network; leave --keep out, or give its options"
            ) from error
        for name in self._PLAIN:
            # Checkpoints of earlier code kept the realism of the best policy alone: the best is looked for anew.
            setattr(self, name, content.get(name, getattr(self, name)))


def _slots_of(fabric: Fabric, scene_index: Sequence[int]) -> Sequence[int]:
    """Of the scenes in all slots, those of this device."""
    own = len(scene_index) // fabric.world_size
    return scene_index[fabric.global_rank * own : (fabric.global_rank + 1) * own]


def _uniform(fabric: Fabric, config: SelfPlayConfig, world: World, seed: int, count: int) -> Tensor:
    """[D + 2, W, A] the random numbers of an episode, for the worlds of this device."""
    # Drawn for all slots of all devices: the actions in a slot depend neither on padding nor on its device.
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand((count + 2, config.worlds, config.max_agents), generator=generator)
    own, agents = world.types.shape
    first = fabric.global_rank * own
    # An agent more than the largest scene has does not exist.
    uniform = torch.nn.functional.pad(
        uniform[:, first : first + own, :agents], (0, max(0, agents - config.max_agents))
    )
    return uniform.to(fabric.device)


def _anchor(
    config: SelfPlayConfig, model: ReferenceAgent | Policy, pool: WorldPool, vocabulary: Vocabulary
) -> Anchor | None:
    """What the policy learns from or is compared with."""
    if config.anchor == "log":
        return LogScorer(vocabulary.size)
    if not any(phase.ppo.compares for phase in config.phases):
        return None
    if isinstance(model, Policy):
        return PolicyScorer(model)
    return ReferenceScorer(model, pool.scene, config.cache_worlds)


def _start_from(path: Path, policy: Policy, vocabulary: Vocabulary, config: SelfPlayConfig) -> None:
    """Give a policy the weights of a trained one, and what that one was trained on."""
    trained, words, view = load_policy(path)
    if not torch.equal(words.poses, vocabulary.poses.cpu()):
        raise UserError(
            f"--start {path}: its tokens are not those of the reference; start from a policy trained on it"
        )
    for kind, had, wanted in (
        ("view", view, config.view),
        ("policy", dataclasses.asdict(trained.config), config.policy),
    ):
        other = [f"{kind}.{name} {had.get(name)}" for name, value in vars(wanted).items() if had.get(name) != value]
        if other:
            raise UserError(f"--start {path}: it has {', '.join(other)}; give the same --{kind}.*")
    policy.load_state_dict(trained.state_dict())
    policy.trained_on = merge_digests(policy.trained_on, trained.trained_on)


def _evaluate(
    agent: PolicyAgent, held_out: Sequence[Scene], config: SelfPlayConfig, seed: int, state: _State, best: Path
) -> Row:
    """Figures on held-out scenes; the best policy so far is kept (see ``_rank``)."""
    types = [int(AgentType.VEHICLE)] if config.ppo.driven == "vehicles" else None
    figures = closed_loop_figures(agent, held_out, config.evaluate_rollouts, seed, types)
    least = config.evaluate_least_speed
    if "realism" in figures and (not state.best_row or _rank(figures, least) > _rank(state.best_row, least)):
        state.best_row = {"agent_steps": float(state.agent_steps), **figures}
        save_policy(best, state.policy, agent.vocabulary.to("cpu"), dataclasses.asdict(config.view))
    return {f"evaluation_{name}": value for name, value in figures.items()}


def _rank(figures: Row, least_speed: float) -> tuple[bool, float]:
    """By what evaluated policies are compared: realism of those that drive, speed of the others."""
    # Held-out scenes in which nobody moves allow realism alone.
    speed = figures.get("speed_ratio_8s", math.inf)
    drives = speed >= least_speed
    return drives, figures["realism"] if drives else speed


def _best_figures(best: Row, least_speed: float) -> Row:
    """Of the best policy, for the manifest; says so where no evaluated policy was fast enough."""
    if not best:
        return {}
    drives, _ = _rank(best, least_speed)
    if not drives:
        say(
            f"selfplay: no evaluated policy keeps {least_speed:g} of the log's speed (--evaluate_least_speed); "
            f"{BEST_FILE} is the fastest, with {best['speed_ratio_8s']:.2f} and a realism of {best['realism']:.3f}"
        )
    names = ("agent_steps", "realism", "speed_ratio_8s", "standing")
    return {"best_is_fast_enough": float(drives)} | {
        f"best_{name}": round(best[name], 5) for name in names if name in best
    }


def _fingerprint(
    config: SelfPlayConfig, seed: int, models: Sequence[Path], store: SceneStore, held_out: Sequence[Scene]
) -> str:
    ids = [list(store.ids), [str(scene.scenario_id) for scene in held_out]]
    # How results are computed may change on the way; what is computed may not.
    values = repr((deciding(dataclasses.asdict(config)), seed, *(sha256_of(path) for path in models), ids))
    return hashlib.sha256(values.encode()).hexdigest()


def _seed_of(seed: int, update_number: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}/{update_number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _means(fabric: Fabric, sums: Mapping[str, Tensor]) -> Row:
    total = summed(fabric, torch.stack(list(sums.values())))
    means = total[:, 0] / total[:, 1].clamp(min=1)
    return dict(zip(sums, means.tolist(), strict=True))


def _group(name: str) -> str:
    return next((group for prefix, group in _GROUPS.items() if name.startswith(prefix)), "ppo")


def _text(row: Row) -> str:
    """Figures beside the progress bar."""
    text = f"KL {row['kl']:.3f}, collision {row['collision_rate']:.3f}, off-road {row['off_road_rate']:.3f}"
    for name, title in (("realism", "realism"), ("speed_ratio_8s", "speed ratio")):
        if f"evaluation_{name}" in row:
            text += f", {title} {row[f'evaluation_{name}']:.3f}"
    return text
