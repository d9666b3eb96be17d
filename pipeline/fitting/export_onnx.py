"""ONNX files of the policy and of the reference, for programs without Python or torch; opset 18.

``policy.onnx`` has the fields of an ``Observation`` as inputs, and logits [N, K].

The reference is three graphs for one scene with R rollouts; ``scripts/examples/onnx_rollout.py`` drives them.
``reference_map.onnx`` runs once for a scene and gives keys and values of all map pieces. ``reference_look.onnx``
runs once a second and gives each agent's view of the map. ``reference_step.onnx`` is a decoding step: logits
[R, A, K] from poses, last tokens, lights, view and cache, and the cache after it.

Shape legend: N agents of all worlds, P neighbours, Q road segments, R rollouts, A agents, S lights, M map pieces, W
slots of the cache, J map neighbours, H heads, K vocabulary size.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import UserError
from data.files import atomic_write
from data.map_pieces import MapPieces
from data.scene import Scene
from models.policy import Policy
from models.reference.agent import ReferenceAgent
from models.reference.decoder import MapView
from models.reference.inputs import AgentInputs, KnownLights
from models.reference.kv_cache import KVCache
from models.reference.map_encoder import MapEncoding
from models.reference.network import Reference, StepInput

OPSET = 18
# Sizes to trace with, all different; each is free in the graph.
_TRACED = {"N": 5, "P": 7, "Q": 11, "R": 2, "A": 3, "S": 4, "M": 13}
_FLOAT, _WHOLE, _TRUTH = torch.float32, torch.int64, torch.bool
# Names of the inputs of a graph, with their sizes (free ones by name) and types.
Inputs = Mapping[str, tuple[tuple[str | int, ...], torch.dtype]]


def export_policy_onnx(folder: Path, policy: Policy) -> Path:
    """Write ``policy.onnx`` atomically.

    Raises:
        UserError: ONNX is not installed.
    """
    ego, neighbour, road = policy.features
    inputs: Inputs = {
        "ego": (("N", ego), _FLOAT),
        "neighbour": (("N", "P", neighbour), _FLOAT),
        "neighbour_seen": (("N", "P"), _TRUTH),
        "road": (("N", "Q", road), _FLOAT),
        "road_seen": (("N", "Q"), _TRUTH),
        "type": (("N",), _WHOLE),
        "motion": (("N", 3), _FLOAT),
    }
    return _write(folder / "policy.onnx", _Logits(policy.cpu().eval()), inputs, ["logits"])


def export_reference_onnx(folder: Path, model: Reference) -> list[Path]:
    """Write ``reference_map.onnx``, ``reference_look.onnx`` and ``reference_step.onnx``, each atomically.

    Raises:
        UserError: ONNX is not installed.
    """
    model, config, count = model.cpu().eval(), model.config, model.config.layers
    slots, width, seen = model.offsets[-1], config.hidden // config.heads, config.map_neighbours
    people: Inputs = {"pose": (("R", "A", 3), _FLOAT), "moved": (("R", "A"), _TRUTH)}
    view: Inputs = {
        "view_pose": (("R", "A", 1, seen, 3), _FLOAT),
        "view_bias": (("R", "A", 1, seen), _FLOAT),
        "view_light": (("R", "A", 1, seen), _WHOLE),
        **{f"view_{n}": ((2, "R", "A", 1, config.heads, seen, width), _FLOAT) for n in range(count)},
    }
    past: Inputs = {
        "past_pose": (("R", "A", slots, 3), _FLOAT),
        "past_present": (("R", "A", slots), _TRUTH),
        **{f"past_{n}": ((2, "R", "A", config.heads, slots, width), _FLOAT) for n in range(count)},
    }
    sources: Inputs = {f"source_{n}": ((1, "M", 2 * config.hidden), _FLOAT) for n in range(count)}
    of_map: Inputs = {
        "piece_point": ((1, "M", 3, 2), _FLOAT),
        "piece_pose": ((1, "M", 3), _FLOAT),
        "piece_kind": ((1, "M"), _WHOLE),
        "piece_subtype": ((1, "M"), _WHOLE),
    }
    of_look: Inputs = {
        **people,
        "before": (("R", "A", 3), _FLOAT),
        "piece_pose": ((1, "M", 3), _FLOAT),
        "piece_valid": ((1, "M"), _TRUTH),
        "piece_light": ((1, "M"), _WHOLE),
        **sources,
    }
    of_step: Inputs = {
        **people,
        "previous": (("R", "A"), _WHOLE),
        "present": (("R", "A"), _TRUTH),
        "types": (("R", "A"), _WHOLE),
        "size": (("R", "A", 3), _FLOAT),
        "boundary": ((1,), _WHOLE),
        "light_code": ((1, "S", 1), _WHOLE),
        "light_age": ((1, "S", 1), _FLOAT),
        **view,
        **past,
    }
    after = [f"new_{name}" for name in past]
    return [
        _write(folder / "reference_map.onnx", _Map(model), of_map, list(sources)),
        _write(folder / "reference_look.onnx", _Look(model), of_look, list(view)),
        _write(folder / "reference_step.onnx", _Step(model), of_step, ["logits", *after]),
    ]


def write_scene(path: Path, agent: ReferenceAgent, scene: Scene) -> None:
    """Write what the graphs of the reference read of a scene as ``.npz``, atomically.

    The names are those of the inputs; ``lights_code`` and ``lights_age`` [1, S, L] are of L seconds, ``history_*``
    [1, A, B, ...] what the boundaries up to the current step read, ``past_*`` an empty cache, ``vocabulary``
    [3, K, s, 3] the motion of tokens, and ``origin`` [2] what was taken off positions.
    """
    prepared = agent.prepare(scene)
    inputs, pieces = prepared.inputs, prepared.inputs.pieces
    tokens, cache = inputs.tokens, agent.model.empty_cache(1, inputs.agents.types.shape[1])
    # Nobody has moved at the first boundary, and everybody is there at the current one.
    first = torch.zeros_like(tokens.valid[:, :, :1])
    moved = torch.cat((first, tokens.valid), dim=2)
    arrays = {
        "piece_point": pieces.point,
        "piece_pose": pieces.pose,
        "piece_kind": pieces.kind,
        "piece_subtype": pieces.subtype,
        "piece_valid": pieces.valid,
        "piece_light": pieces.light,
        "types": inputs.agents.types,
        "size": inputs.agents.size,
        "lights_code": prepared.lights.code,
        "lights_age": prepared.lights.age,
        "history_pose": tokens.poses,
        "history_before": torch.cat((tokens.poses[:, :, :1], tokens.poses[:, :, :-1]), dim=2),
        "history_previous": torch.cat((first.long(), tokens.ids), dim=2),
        "history_moved": moved,
        "history_present": moved | torch.cat((tokens.valid, ~first), dim=2),
        "past_pose": cache.pose,
        "past_present": cache.present,
        **{f"past_{layer}": tensor for layer, tensor in enumerate(cache.keys_values)},
        "vocabulary": agent.vocabulary.poses,
        "origin": prepared.origin[0],
    }
    content = io.BytesIO()
    np.savez(content, **{name: tensor.cpu().numpy() for name, tensor in arrays.items()})
    atomic_write(path, lambda file: file.write(content.getvalue()))


def _write(path: Path, graph: nn.Module, inputs: Inputs, outputs: Sequence[str]) -> Path:
    try:
        import onnx  # noqa: F401  (torch imports it without saying what to do)
    except ImportError as error:
        raise UserError("--onnx needs the package onnx: pip install -r requirements-dev.txt") from error
    free = {
        name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
        for name, (shape, _) in inputs.items()
    }
    traced = tuple(
        torch.zeros([_TRACED[size] if isinstance(size, str) else size for size in shape], dtype=dtype)
        for shape, dtype in inputs.values()
    )
    content = io.BytesIO()
    # The exporter that traces: it takes a second and needs no package to write the graph. It warns that it is the
    # older one, and of sizes that are the same in every graph.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            # Afterwards the exporter gives the graph, and the model in it, the mode that the graph has now.
            graph.eval(),
            traced,
            content,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=free,
            # ONNX Runtime folds constants when it loads a graph.
            do_constant_folding=False,
        )
    atomic_write(path, lambda file: file.write(content.getvalue()))
    return path


class _Logits(nn.Module):
    """A policy without its values."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.policy(*inputs)[0]


class _Map(nn.Module):
    """Keys and values of all pieces for each layer."""

    def __init__(self, model: Reference) -> None:
        super().__init__()
        self.model = model

    def forward(self, point: Tensor, pose: Tensor, kind: Tensor, subtype: Tensor) -> tuple[Tensor, ...]:
        pieces = MapPieces(point, pose, height=pose[..., 0], kind=kind, subtype=subtype, light=kind)
        return self.model.map_sources(self.model.encode_map(pieces, pose[:, 0, :2]))


class _Look(nn.Module):
    """``Reference.lookup_map`` without a ring: the poses before are given."""

    def __init__(self, model: Reference) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pose: Tensor,
        moved: Tensor,
        before: Tensor,
        piece_pose: Tensor,
        valid: Tensor,
        light: Tensor,
        *sources: Tensor,
    ) -> tuple[Tensor, ...]:
        cache = KVCache([], before.unsqueeze(2), moved.unsqueeze(2))
        encoding = MapEncoding(torch.zeros(1, 2), sources[0], piece_pose, valid, light)
        self.model.lookup_map(0, cache, encoding, sources, StepInput(pose, moved.long(), moved, moved))
        assert cache.view is not None
        return (cache.view.pose, cache.view.bias, cache.view.light, *cache.map_keys_values)


class _Ring(KVCache):
    """Writes are new tensors: a graph cannot change its inputs."""

    def write_layer(self, boundary: Tensor, layer: int, keys_values: Tensor) -> None:
        self.keys_values[layer] = torch.where(
            self._here(boundary).unsqueeze(-1), keys_values, self.keys_values[layer]
        )

    def write_state(self, boundary: Tensor, pose: Tensor, present: Tensor) -> None:
        here = self._here(boundary)
        self.pose = torch.where(here.unsqueeze(-1), pose.unsqueeze(2), self.pose)
        # ONNX Runtime has no Where of truth values.
        self.present = (here & present.unsqueeze(2)) | (~here & self.present)

    def _here(self, boundary: Tensor) -> Tensor:
        """[W] bool, the slot of a boundary."""
        return torch.arange(self.slots) == boundary % self.slots


class _Step(nn.Module):
    """``Reference.decode_step`` with the cache as inputs and outputs."""

    def __init__(self, model: Reference) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            self.tables = model.token_tables()

    def forward(
        self,
        pose: Tensor,
        moved: Tensor,
        previous: Tensor,
        present: Tensor,
        types: Tensor,
        size: Tensor,
        boundary: Tensor,
        light_code: Tensor,
        light_age: Tensor,
        view_pose: Tensor,
        view_bias: Tensor,
        view_light: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        layers = self.model.config.layers
        seen, (past_pose, past_present, *past) = caches[:layers], caches[layers:]
        cache = _Ring(past, past_pose, past_present, MapView(view_pose, view_bias, view_light), seen)
        logits = self.model.decode_step(
            boundary,
            cache,
            self.tables,
            AgentInputs(types, size, present),
            KnownLights(light_code, light_age),
            StepInput(pose, previous, moved, present),
        )
        return (logits, cache.pose, cache.present, *cache.keys_values)
