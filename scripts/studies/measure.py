"""Small measurements on recorded scenes and rollouts, whose figures stand in the docs.

    python scripts/studies/measure.py heights --scenarios WOMD/validation [--checkpoint CKPT] [--rollouts 8]
    python scripts/studies/measure.py motion --scenarios WOMD/training
    python scripts/studies/measure.py speeds --scenarios runs/demo/tokenize/validation \\
        --rollouts runs/demo/sample/validation/policy [--rollouts ...]
    python scripts/studies/measure.py gap --scenarios runs/demo/tokenize/training \\
        --checkpoint runs/demo/pretrain/reference.ckpt
    python scripts/studies/measure.py sampling --scenarios runs/demo/tokenize/validation \\
        --checkpoint models/zoo/policy
    python scripts/studies/measure.py formats --files "NUSCENES/*.pkl" --files GPUDRIVE \\
        --scenarios WOMD/training --scenarios WOMD/validation
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.batch import collate
from data.completeness import Remarks
from data.formats.catalogue import AUTO, FORMATS
from data.formats.reader import Reading, read_whole
from data.geometry import wrap_angle
from data.ground import follow_ground
from data.scene import CURRENT_INDEX, STEP_SECONDS, Scene
from data.scenes_source import open_scenes
from data.sources import find_shards
from data.store import SceneStore, write_shard
from data.tokenizer import scene_origin, tokenize_scene
from data.vocabulary import (
    TYPE_NAMES,
    VocabularyConfig,
    build_vocabulary,
    corner_distance,
    pose_corners,
    type_index,
)
from models.reference.checkpoint import load_reference
from models.reference.inputs import keep_agents
from models.reference.recording import scene_inputs
from models.sampling import SamplingConfig
from pipeline.agents.baselines import ConstantVelocity
from pipeline.agents.catalogue import open_agent
from pipeline.agents.closed_loop import mean_figures, scene_figures
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.evaluation.motion import SECONDS, motion_figures
from pipeline.evaluation.motion import speeds as future_speeds
from pipeline.evaluation.statistics import Array, difference
from pipeline.execution.tables import render_table
from pipeline.stages.finetune import roll_out
from submission.protos import read_rollouts
from submission.realism import load_config, prepare_scene, score, unscorable_reason
from submission.suspicion import JUMP, RISE

_QUANTILES = (0.5, 0.99, 0.999, 0.9999, 1.0)
_MOVING = 0.5


def heights(options: argparse.Namespace) -> None:
    """What heights that follow the map are worth: errors on recorded motion, and minADE of sampled futures.

    Prints the mean error of z over valid future steps with z kept at its present value and with z that follows the
    map under the recorded positions; with a checkpoint also minADE (the metric's, in three dimensions) of both.
    """
    agent = None if options.checkpoint is None else ReferenceDriver.from_checkpoint(options.checkpoint)
    config, source = load_config("2025"), open_scenes(options.scenarios)
    kept = followed = 0.0
    steps = 0
    ade: list[tuple[float, float]] = []
    for index in range(len(source)):
        scene = source[index]
        agents, future = scene.agents, slice(CURRENT_INDEX + 1, None)
        position, valid = agents.position[scene.simulated, future], agents.valid[scene.simulated, future]
        start = agents.position[scene.simulated, CURRENT_INDEX]
        height = follow_ground(scene, position[None, ..., :2], start)[0]
        # Where the recording has a gap there is no place to look at.
        whole = valid.all(-1, keepdim=True)
        kept += float(((position[..., 2] - start[:, None, 2]).abs() * whole).sum())
        followed += float(((position[..., 2] - height).abs() * whole).sum())
        steps += int(whole.sum()) * valid.shape[1]
        if agent is None or unscorable_reason(scene) is not None:
            continue
        states, ids = agent.rollouts(scene, options.rollouts, 0), agents.id[scene.simulated]
        prepared = prepare_scene(scene)
        flat = states.clone()
        flat[..., 2] = start[:, None, 2]
        field = "min_average_displacement_error"
        ade.append(tuple(float(score(prepared, ids, s, config).values[field]) for s in (flat, states)))  # type: ignore[arg-type]
    print(f"z, mean error over {steps} steps: kept {kept / steps:.4f} m, followed {followed / steps:.4f} m")
    if ade:
        flat_mean, followed_mean = (sum(values) / len(ade) for values in zip(*ade, strict=True))
        print(f"minADE over {len(ade)} scenarios: kept {flat_mean:.4f} m, followed {followed_mean:.4f} m")


def motion(options: argparse.Namespace) -> None:
    """How far recorded agents move in a tenth of a second: what a validator may call a jump.

    Prints, for each type of agent, quantiles of the distance in the plane and of the change of height between two
    steps that are both recorded, and what of each lies beyond the validator's limits.
    """
    steps: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(TYPE_NAMES))}
    rises: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(TYPE_NAMES))}
    for scene in open_scenes(options.scenarios):
        selected = scene.simulated
        position, valid = (
            scene.agents.position[selected, CURRENT_INDEX:],
            scene.agents.valid[selected, CURRENT_INDEX:],
        )
        both = valid[:, 1:] & valid[:, :-1]
        step = position[:, 1:] - position[:, :-1]
        types = type_index(scene.agents.type[selected])
        for index in steps:
            mine = both & (types == index)[:, None]
            steps[index].append(step[mine][:, :2].norm(dim=-1))
            rises[index].append(step[mine][:, 2].abs())
    for title, values, limit in (("distance", steps, JUMP), ("height", rises, RISE)):
        print(f"{title}, metres a step; limit {limit}")
        for index, name in enumerate(TYPE_NAMES):
            data = torch.cat(values[index]).double().sort().values
            last = len(data) - 1
            row = [f"{float(data[round(quantile * last)]):9.3f}" for quantile in _QUANTILES if len(data)]
            print(f"  {name:11} {len(data):9} steps {' '.join(row)}   beyond: {int((data > limit).sum())}")


def speeds(options: argparse.Namespace) -> None:
    """How fast vehicles continue that move at the current step: in the log, and in rollouts.

    Prints the mean speed now and after every two seconds. Only vehicles count that are recorded at all of these
    moments, so that all rows are of the same ones.
    """
    source = open_scenes(options.scenarios)
    now: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {"log": []}
    selected: dict[str, Tensor] = {}
    for scene in source:
        agents, simulated = scene.agents, scene.simulated
        speed = agents.velocity[simulated, CURRENT_INDEX].norm(dim=-1)
        moments = [CURRENT_INDEX + round(seconds / STEP_SECONDS) for seconds in SECONDS]
        seen = torch.stack([agents.valid[simulated][:, [m - 1, m]].all(-1) for m in moments]).all(0)
        mine = seen & (speed > _MOVING) & (type_index(agents.type[simulated]) == 0)
        selected[str(scene.scenario_id)] = mine
        now.append(speed[mine])
        rows["log"].append(future_speeds(agents.position[simulated][mine, CURRENT_INDEX + 1 :, :2]))
    for path in options.rollouts:
        rows[path] = [
            future_speeds(one.states[:, selected[one.scenario_id], :, :2]).mean(0) for one in read_rollouts(path)
        ]
    start = torch.cat(now).mean()
    print(f"{len(torch.cat(now))} vehicles, m/s: now {start:.2f}; after {', '.join(map(str, SECONDS))} s")
    for name, parts in rows.items():
        print(f"  {name}: {', '.join(f'{value:.2f}' for value in torch.cat(parts).mean(0).tolist())}")


def gap(options: argparse.Namespace) -> None:
    """What closed-loop fine-tuning has to learn from: how far rollouts of the reference near the log get from it.

    A rollout takes, of the k likeliest tokens, the one nearest to the log (CAT-K). Prints for some k how often that
    is another token than the nearest of all, the target of teacher forcing, and how far rollouts are from the log.
    """
    model = load_reference(options.checkpoint).eval()
    store = SceneStore(options.scenarios)
    rows = [["k", "another token, %", "mean distance, m", "p90, m", "p99, m", "beyond 1 m, %"]]
    for top_k in options.top_k:
        differ, errors = [], []
        for index in range(0, len(store), max(1, len(store) // options.count)):
            inputs = scene_inputs(collate([keep_agents(store[index], 32)]), model.vocabulary)
            loop = roll_out(model, inputs, top_k, float("inf"))
            first = CURRENT_INDEX // model.vocabulary.token_steps
            box = model.vocabulary.box[inputs.agents.types.unsqueeze(-1)]
            start = loop.tokens.poses[:, :, :-1]
            error = corner_distance(pose_corners(start, box), pose_corners(inputs.recorded[:, :, :-1], box))
            differ.append((loop.tokens.ids != loop.target)[loop.mask])
            errors.append(error[..., first + 1 :][loop.mask[..., first + 1 :]])
        distance = torch.cat(errors)
        fraction = torch.cat(differ).double().mean()
        tail = [float(torch.quantile(distance[:: max(1, len(distance) // 1_000_000)], q)) for q in (0.9, 0.99)]
        cells = [f"{100 * fraction:.1f}", f"{distance.mean():.3f}", *(f"{value:.2f}" for value in tail)]
        rows.append([str(top_k), *cells, f"{100 * (distance > 1).double().mean():.1f}"])
    print(render_table(rows))


def sampling(options: argparse.Namespace) -> None:
    """Temperature and top-p, chosen by realism on one half of the scenes and compared on the other half.

    Prints the figures of every setting on every second scene; then those of the most real one and of the whole
    distribution on the rest, over seeds, and how much more real it is.
    """
    agent: Any = open_agent(options.checkpoint)
    scenes = [scene for scene in open_scenes(options.scenarios) if unscorable_reason(scene) is None]
    columns = ("realism", "collision", "off-road", "minADE, m", "diversity, m", "speed, 8 s", "standing (log)")
    rows = [["temperature", "top-p", *columns]]

    def tried(config: SamplingConfig, half: Sequence[Scene], seeds: int) -> Array:
        """Realism [seeds, scenes]; a row is added to the table."""
        agent.sampling = config
        found = [
            [scene_figures(scene, states) for scene, states in agent.rollouts_of(half, options.rollouts, seed)]
            for seed in range(seeds)
        ]
        together = [one for of_seed in found for one in of_seed]
        means, moving = mean_figures(together), motion_figures([one.motion for one in together])
        names = ("realism", "simulated_collision_rate", "simulated_offroad_rate", "min_ade_m", "diversity_m")
        cells = [f"{means[name]:.3f}" for name in names] + [f"{moving['speed_ratio_8s']:.2f}"]
        standing = f"{moving['standing']:.3f} ({moving['log_standing']:.3f})"
        rows.append([f"{config.temperature:g}", f"{config.top_p:g}", *cells, standing])
        return np.array([[one.metric["metametric"] for one in of_seed] for of_seed in found])

    grid = [SamplingConfig(temperature=one, top_p=other) for one in options.temperature for other in options.top_p]
    best = max(grid, key=lambda config: float(tried(config, scenes[::2], 1).mean()))
    chosen, whole = (tried(config, scenes[1::2], options.seeds) for config in (best, SamplingConfig()))
    print(render_table([*rows[:-2], ["on the rest", *[""] * (len(rows[0]) - 1)], *rows[-2:]]))
    gain = difference(chosen, whole)
    print(f"the first of these minus the second: {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]")


def formats(options: argparse.Namespace) -> None:
    """What files of other formats give, and how scenes differ from those of the same ids in WOMD's protos.

    Prints for every ``--files`` what was read, refused, left out or derived, and what it took; then, where a
    ``--scenarios`` has a scene of the same id, the largest differences of what is valid in both.
    """
    rows = [["files", "number", "scenarios", "refused", "left out or derived", "CPU s", "MB", "kB a scene"]]
    scenes: list[Scene] = []
    for files in options.files:
        shards, remarks, results = find_shards(files, format=AUTO), Remarks(), []
        begun = time.process_time()
        for shard in shards:
            items = FORMATS[shard.format].read(shard.url, Reading(need_future=True), remarks)
            results += [item.result for item in items]
        seconds = time.process_time() - begun
        found = [result for result in results if isinstance(result, Scene)]
        refused = Counter(result.code for result in results if not isinstance(result, Scene))
        size = sum(len(read_whole(shard.url)) for shard in shards)
        with tempfile.TemporaryDirectory() as folder:
            write_shard(Path(folder) / "shard.parquet", found)
            stored = (Path(folder) / "shard.parquet").stat().st_size
        rows.append([
            Path(files).name, str(len(shards)), str(len(found)), _counts(refused), _counts(remarks.figures()),
            f"{seconds:.2f}", f"{size / 1e6:.1f}", f"{stored / 1e3 / max(1, len(found)):.0f}",
        ])  # fmt: skip
        scenes += found
    print(render_table(rows))
    rows = [["scenario", *_PARITY]]
    sources = [open_scenes(place) for place in options.scenarios]
    for scene in scenes:
        for source in sources:
            if scene.scenario_id in source.ids:
                other = source.get(str(scene.scenario_id))
                rows.append([str(scene.scenario_id), *(f"{value:.1g}" for value in _differences(scene, other))])
    print(render_table(rows))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


_PARITY = ("position, m", "heading, rad", "map, m", "lights", "token ids", "realism")


def _largest(one: Tensor, other: Tensor) -> float:
    """Largest difference of two tensors, infinite if they are not of one shape, 0 if they are empty."""
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max()) if one.numel() else 0.0


def _differences(one: Scene, other: Scene) -> list[float]:
    """Largest differences of two scenes of a scenario, in the order of ``_PARITY``; of token ids how many."""
    valid = one.agents.valid & other.agents.valid
    turn = wrap_angle(one.agents.heading.double() - other.agents.heading.double())
    vocabulary = build_vocabulary([other], VocabularyConfig(size=256, max_segments=20_000), 0)
    tokens = [tokenize_scene(vocabulary, scene, scene_origin(scene)).ids for scene in (one, other)]
    states, agent_id = ConstantVelocity().rollouts(other, 32, 0), other.agents.id[other.simulated]
    realism = [score(prepare_scene(scene), agent_id, states, load_config()).values for scene in (one, other)]
    return [
        float((one.agents.position - other.agents.position)[valid].abs().max()),
        float(turn[valid].abs().max()),
        _largest(one.map.point, other.map.point),
        _largest(one.lights.state, other.lights.state),
        float((tokens[0] != tokens[1]).sum()),
        max(float((value - realism[1][name]).abs()) for name, value in realism[0].items()),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for measure in (heights, motion, speeds, gap, sampling, formats):
        command = commands.add_parser(measure.__name__, help=(measure.__doc__ or "").splitlines()[0])
        command.set_defaults(measure=measure)
        action = "append" if measure is formats else "store"
        command.add_argument(
            "--scenarios", required=True, action=action, help="WOMD TFRecords or a store, with futures"
        )
        if measure is heights:
            command.add_argument("--checkpoint", type=Path, help="reference.ckpt")
            command.add_argument("--rollouts", type=int, default=8, help="futures of each scenario")
        if measure is speeds:
            command.add_argument("--rollouts", action="append", required=True, help="of these scenarios; repeat")
        if measure is gap:
            command.add_argument("--checkpoint", type=Path, required=True, help="reference.ckpt")
            command.add_argument("--count", type=int, default=24, help="scenes, spread over the store")
            command.add_argument("--top_k", type=int, nargs="+", default=[1, 5, 32, 200])
        if measure is sampling:
            command.add_argument("--checkpoint", type=Path, required=True, help="of a reference or a policy")
            command.add_argument("--rollouts", type=int, default=32, help="futures of each scenario")
            command.add_argument("--temperature", type=float, nargs="+", default=[0.8, 0.9, 1.0, 1.1])
            command.add_argument("--top_p", type=float, nargs="+", default=[0.9, 0.95, 1.0])
            command.add_argument("--seeds", type=int, default=3)
        if measure is formats:
            command.add_argument("--files", action="append", required=True, help="folder, file or glob; repeat")
    options = parser.parse_args(arguments)
    options.measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
