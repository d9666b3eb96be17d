"""``onnx``: logits of the exported policy and reference by ONNX Runtime beside those of torch, on one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.scene import Scene
from data.vocabulary import VocabularyConfig, build_vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.config import size_preset
from models.reference.inputs import AgentInputs, KnownLights
from models.reference.kv_cache import KVCache
from models.reference.network import Reference, StepInput
from pipeline.agents.policy_agent import open_policy
from pipeline.bench.rows import Row, cpu_seconds, load_scenes
from pipeline.fitting.export_onnx import export_policy_onnx, export_reference_onnx
from pipeline.simulator.observation import ObservationConfig, feature_sizes, observe
from pipeline.simulator.step import agent_indices, reset
from pipeline.simulator.world import build_world

_ROLLOUTS, _REPEATS = 32, 20
_SIZE = "mini"


def bench(policy: Path | None = None, reference: Path | None = None) -> list[Row]:
    """Milliseconds of a decision of all agents of a scene, against torch's, and the largest difference of logits.

    Args:
        policy, reference: checkpoints. Without them weights are random, the reference of size mini.
    """
    kind, [scene] = load_scenes(1)
    torch.manual_seed(0)
    vocabulary = build_vocabulary([scene], VocabularyConfig(max_segments=20_000), 0)
    if policy is None:
        view = ObservationConfig()
        student, words = Policy(PolicyConfig(), feature_sizes(view), vocabulary.ends).eval(), vocabulary
    else:
        student, words, view = open_policy(policy)
    network = Reference(size_preset(_SIZE), vocabulary) if reference is None else None
    teacher = ReferenceAgent(network) if network else ReferenceAgent.from_checkpoint(reference or Path())
    about = f"{kind}, {int(scene.simulated.sum())} agents"
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        export_policy_onnx(folder, student)
        export_reference_onnx(folder, teacher.model)
        world = build_world(scene, words, view.listed_segments, with_edges=False)
        seen = observe(world, reset(world, torch.ones_like(world.exists)), agent_indices(world.exists), view, False)
        observed = {key: value for key, value in vars(seen).items() if key != "beyond"}
        rows = _rows(f"policy, {about}", folder / "policy.onnx", observed, lambda: student(*observed.values())[0])
        feeds, step = _decoding(teacher, scene)
        rows += _rows(f"reference, {_ROLLOUTS} rollouts, {about}", folder / "reference_step.onnx", feeds, step)
    return rows


def _rows(name: str, graph: Path, feeds: dict[str, Tensor], of_torch: Callable[[], Tensor]) -> list[Row]:
    session = open_session(graph)
    arrays = {each.name: feeds[each.name].numpy() for each in session.get_inputs()}
    difference = (torch.from_numpy(session.run(["logits"], arrays)[0]) - of_torch()).abs().max()
    ours = 1e3 * cpu_seconds(lambda: session.run(None, arrays), _REPEATS)
    theirs = 1e3 * cpu_seconds(of_torch, _REPEATS)
    return [
        Row(f"ONNX Runtime against torch, {name}", ours, "CPU ms", theirs, theirs / ours),
        Row(f"largest difference of logits, {name}", float(difference), ""),
    ]


def open_session(graph: Path) -> Any:
    """A graph on one thread.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("this needs the package onnxruntime: pip install -r requirements-dev.txt") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options)


def step_feeds(
    boundary: Tensor, cache: KVCache, agents: AgentInputs, lights: KnownLights, step: StepInput
) -> dict[str, Tensor]:
    """Arguments of ``Reference.decode_step`` by the names of the graph's inputs, copied."""
    assert cache.view is not None
    feeds = {
        **{name: getattr(step, name) for name in ("pose", "previous", "moved", "present")},
        "types": agents.types,
        "size": agents.size,
        "boundary": boundary,
        "light_code": lights.code,
        "light_age": lights.age,
        "past_pose": cache.pose,
        "past_present": cache.present,
        **{f"view_{name}": getattr(cache.view, name) for name in ("pose", "bias", "light")},
        **{f"past_{number}": tensor for number, tensor in enumerate(cache.keys_values)},
        **{f"view_{number}": tensor for number, tensor in enumerate(cache.map_keys_values)},
    }
    return {name: tensor.clone() for name, tensor in feeds.items()}


def _decoding(agent: ReferenceAgent, scene: Scene) -> tuple[dict[str, Tensor], Callable[[], Tensor]]:
    """Inputs of the first decision, and torch's way to its logits."""
    calls: list[tuple[Any, ...]] = []
    plain = agent.model.decode_step

    def noted(*given: Any) -> Tensor:
        calls.append(given)
        return plain(*given)

    engine: Any = agent.engine
    engine._decode = noted
    agent.unroll(agent.prepare(scene), _ROLLOUTS).logits()
    engine._decode = plain
    boundary, cache, tables, agents, lights, step = calls[-1]
    feeds = step_feeds(boundary, cache, agents, lights, step)
    return feeds, lambda: plain(boundary, cache, tables, agents, lights, step)
