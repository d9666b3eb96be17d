"""Where time, FLOPs and bytes of the reference go: one training step and 32 rollouts of a scene, by part.

    python scripts/studies/profile_reference.py --scenarios WOMD/validation [--size nano] [--scene 0] [--threads 1]

FLOPs are those of matrix products (torch's own formulas); bytes are what operations read and write, views left out;
seconds are wall time inside operations. Shares of peak are of a large matrix product and of a large copy, measured
in the same run. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.batch import collate
from data.scenes_source import open_scenes
from data.vocabulary import VocabularyConfig, build_vocabulary
from models.reference.agent import ReferenceAgent
from models.reference.config import size_preset
from models.reference.inputs import keep_agents
from models.reference.loss import loss_mask, token_loss
from models.reference.network import Reference
from models.reference.recording import prune_map, recording_inputs, recording_of
from pipeline.agents.reference_agent import ReferenceDriver

# First match counts: part of a module's name to what it is called in the table.
_PARTS = (
    (".feed_forward", "feed-forward"),
    ("map_encoder", "map encoder"),
    ("relations", "relations of poses"),
    # Rollouts call parts of the network alone.
    ("RelationEncoder", "relations of poses"),
    ("Inertia", "head and inertia"),
    (".time", "attention over time"),
    (".map", "attention to the map"),
    (".agent", "attention to agents"),
    ("head", "head and inertia"),
    ("inertia", "head and inertia"),
    ("token", "embeddings"),
)

_REST = "neighbour lists, gathers, lights, loss, sampling, tokens"


class Ledger(TorchDispatchMode):
    """Books every operation on the part of the network it belongs to, in forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.tracker = ModuleTracker()
        self.flops: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)
        self.seconds: dict[str, float] = defaultdict(float)

    def __enter__(self) -> Any:
        self.tracker.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.tracker.__exit__(*error)

    def part(self) -> str:
        name = max(self.tracker.parents, key=len)
        return next((part for key, part in _PARTS if key in name), _REST)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        part, kwargs = self.part(), kwargs or {}
        started = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[part] += time.perf_counter() - started
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.flops[part] += formula(*args, **kwargs, out_val=result)
        if not function.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
            self.bytes[part] += sum(t.numel() * t.element_size() for t in tensors)
        return result


def _peaks() -> tuple[float, float]:
    """FLOP/s of a large product and bytes/s of a large copy."""
    one, two = torch.randn(2048, 2048), torch.randn(2048, 2048)
    large, target = torch.zeros(32_000_000), torch.empty(32_000_000)

    def best(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    return 2 * 2048**3 / best(lambda: one @ two), 2 * 4 * large.numel() / best(lambda: target.copy_(large))


def _table(title: str, run: Callable[[], object], peaks: tuple[float, float]) -> None:
    run()
    started = time.perf_counter()
    run()
    plain = time.perf_counter() - started
    with Ledger() as ledger:
        run()
    flops, size = sum(ledger.flops.values()), sum(ledger.bytes.values())
    print(f"\n### {title}\n\n| part | GFLOP | GB read and written | seconds |\n|---|---|---|---|")
    for part in sorted(ledger.seconds, key=lambda name: -ledger.seconds[name]):
        values = ledger.flops[part] / 1e9, ledger.bytes[part] / 1e9, ledger.seconds[part]
        print(f"| {part} | {values[0]:.2f} | {values[1]:.2f} | {values[2]:.3f} |")
    print(f"| all, not booked | {flops / 1e9:.2f} | {size / 1e9:.2f} | {plain:.3f} |")
    print(f"\nShare of peak: {flops / plain / peaks[0]:.0%} of products, {size / plain / peaks[1]:.0%} of memory.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenarios", required=True, help="WOMD TFRecords or an ingested store, with futures")
    parser.add_argument("--size", default="nano", help="of the reference")
    parser.add_argument("--scene", type=int, default=0, help="number of the scenario")
    parser.add_argument("--agents", type=int, default=32, help="agents trained on")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    source = open_scenes(options.scenarios)
    scene = source[options.scene]
    words = build_vocabulary([source[i] for i in range(min(8, len(source)))], VocabularyConfig(), 0)
    model = Reference(size_preset(options.size), words)
    recording = recording_of(collate([keep_agents(scene, options.agents)]))
    pieces = prune_map(recording_inputs(recording, words), model.config, words.token_steps).pieces
    recording = dataclasses.replace(recording, pieces=pieces)
    peaks = _peaks()
    print(f"Peaks, {options.threads} thread(s): {peaks[0] / 1e9:.0f} GFLOP/s, {peaks[1] / 1e9:.1f} GB/s")

    def train() -> None:
        model.train()
        inputs = recording_inputs(recording, words)
        token_loss(model(inputs), inputs.target)[loss_mask(inputs)].mean().backward()
        model.zero_grad()

    agents, count = int(scene.simulated.sum()), len(pieces.kind[0])
    _table(f"{options.size}, one training step: {recording.valid.shape[1]} agents, {count} pieces", train, peaks)
    agent = ReferenceDriver(ReferenceAgent(model))
    _table(f"{options.size}, 32 rollouts: {agents} agents", lambda: agent.rollouts(scene, 32, 0), peaks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
