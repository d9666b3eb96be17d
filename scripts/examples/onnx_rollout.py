"""Rollouts of the reference with ONNX Runtime and numpy alone.

    python -m pipeline export --checkpoint reference.ckpt --onnx true --scenarios STORE --out DIR
    python scripts/examples/onnx_rollout.py DIR [ROLLOUTS]

Writes DIR/rollouts.npy: [R, A, 80, 3] x, y, heading after each 0.1 s.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 32
graphs = {name: onnxruntime.InferenceSession(folder / f"reference_{name}.onnx") for name in ("map", "look", "step")}


def run(name: str, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a graph by name; of the values it takes those that it knows. A new cache replaces the old one."""
    graph = graphs[name]
    outputs = graph.run(None, {each.name: values[each.name] for each in graph.get_inputs()})
    return {each.name.removeprefix("new_"): value for each, value in zip(graph.get_outputs(), outputs, strict=True)}


scene = dict(np.load(folder / "scene.npz"))
scene |= run("map", scene)
for name, value in scene.items():
    if name in ("types", "size") or name.startswith(("history_", "past_")):
        scene[name] = value.repeat(count, axis=value.shape.index(1))  # from one rollout to all
steps = scene["vocabulary"].shape[2]  # of 0.1 s in a token
rng, motions, second = np.random.default_rng(0), [], 10 // steps  # decisions in a second
for decision in range(second + 80 // steps):
    if decision <= second:  # the first second is known
        names = ("pose", "before", "previous", "moved", "present")
        scene |= {name: scene[f"history_{name}"][:, :, decision] for name in names}
    scene |= {f"light_{name}": scene[f"lights_{name}"][..., decision // second, None] for name in ("code", "age")}
    scene["boundary"] = np.array([decision])
    if decision % second == 0:
        scene |= run("look", scene)
    scene |= run("step", scene)
    if decision < second:
        continue
    share = np.exp(scene["logits"] - scene["logits"].max(-1, keepdims=True)).cumsum(-1)
    token = (share < rng.random(share.shape[:2])[..., None] * share[..., -1:]).sum(-1)
    x, y, turn = np.moveaxis(scene["vocabulary"][scene["types"], token], -1, 0)  # [R, A, steps]
    x0, y0, heading = np.moveaxis(scene["pose"][..., None, :], -1, 0)
    cos, sin = np.cos(heading), np.sin(heading)
    motions.append(np.stack((x0 + x * cos - y * sin, y0 + x * sin + y * cos, heading + turn), axis=-1))
    scene |= {"before": scene["pose"], "pose": motions[-1][..., -1, :], "previous": token}
    scene["moved"] = scene["present"] = np.ones_like(scene["moved"])
future = np.concatenate(motions, axis=2) + np.append(scene["origin"], np.float32(0.0))
future[..., 2] = (future[..., 2] + np.pi) % (2 * np.pi) - np.pi
np.save(folder / "rollouts.npy", future)
print(f"{folder / 'rollouts.npy'}: {count} rollouts of {future.shape[1]} agents")
