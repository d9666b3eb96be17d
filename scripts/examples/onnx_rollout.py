"""A rollout of the reference with ONNX Runtime and numpy alone.

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
    """Outputs of a graph by name; of the values it takes those that it knows."""
    graph = graphs[name]
    outputs = graph.run(None, {each.name: values[each.name] for each in graph.get_inputs()})
    return dict(zip((each.name for each in graph.get_outputs()), outputs, strict=True))


scene = dict(np.load(folder / "scene.npz"))
scene |= run("map", scene)
for name in ("types", "size", "history_ids", "history_valid", "history_pose"):
    scene[name] = scene[name].repeat(count, axis=0)  # [R, A, ...]
shapes = {each.name: each.shape for each in graphs["step"].get_inputs() if each.name.startswith("past")}
actual = {"R": count, "A": scene["types"].shape[1]}
scene |= {name: np.zeros([actual.get(n, n) for n in shape], np.float32) for name, shape in shapes.items()}
scene["past_present"] = scene["past_present"] > 0

rng, motions = np.random.default_rng(0), []
steps = scene["vocabulary"].shape[2]  # of 0.1 s in a token
second, now = 10 // steps, 10 // steps  # boundaries in a second, and that of the current step
pose = before = scene["history_pose"][:, :, 0]
previous, moved = np.zeros_like(scene["types"]), scene["types"] < 0
for boundary in range(now + 80 // steps):
    known = scene["history_valid"][:, :, min(boundary, now - 1)]
    scene |= {
        "pose": pose,
        "before": before,
        "previous": previous,
        "moved": moved,
        "boundary": np.array([boundary]),
    }
    scene["present"] = moved | known if boundary < now else np.ones_like(moved)
    if boundary % second == 0:
        scene |= run("look", scene)
    lights = {name: scene[name][..., boundary // second, None] for name in ("light_code", "light_age")}
    result = run("step", scene | lights)
    scene |= {name.removeprefix("new_"): value for name, value in result.items() if name.startswith("new_")}
    before = pose
    if boundary < now:
        previous, moved = scene["history_ids"][:, :, boundary], known
        pose = scene["history_pose"][:, :, boundary + 1]
        continue
    share = np.exp(result["logits"] - result["logits"].max(-1, keepdims=True)).cumsum(-1)
    previous = (share < rng.random(pose.shape[:2])[..., None] * share[..., -1:]).sum(-1)
    motion, moved = scene["vocabulary"][scene["types"], previous], np.ones_like(moved)  # [R, A, steps, 3]
    cos, sin = np.cos(pose[..., None, 2]), np.sin(pose[..., None, 2])
    x, y = motion[..., 0] * cos - motion[..., 1] * sin, motion[..., 0] * sin + motion[..., 1] * cos
    motions.append(pose[..., None, :] + np.stack((x, y, motion[..., 2]), axis=-1))
    pose = motions[-1][..., -1, :].astype(np.float32)
future = np.concatenate(motions, axis=2)
future[..., :2] += scene["origin"]
future[..., 2] = (future[..., 2] + np.pi) % (2 * np.pi) - np.pi
np.save(folder / "rollouts.npy", future.astype(np.float32))
print(f"{folder / 'rollouts.npy'}: {count} rollouts of {future.shape[1]} agents")
