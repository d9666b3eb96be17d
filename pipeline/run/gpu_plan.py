"""What stages take on GPUs, from what was measured on one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.scene import FUTURE_STEPS
from models.reference.config import ReferenceConfig, size_preset
from pipeline.agents import policy_agent, reference_agent
from pipeline.run.measured import Measured


@dataclass(frozen=True)
class GpuEstimate:
    """What a stage takes on GPUs.

    Attributes:
        count: GPUs that are used. seconds: of all. gpu_gb: memory of one GPU, and scene_gb of one scene; None
            where that was not measured.
        basis: where the figures come from. guesses: what was assumed besides.
    """

    count: int
    seconds: float
    gpu_gb: float | None
    scene_gb: float | None
    basis: str
    guesses: tuple[str, ...] = ()


def _work(model: ReferenceConfig) -> int:
    """What the time of a network grows with."""
    return model.hidden**2 * (model.layers + model.map_layers)


def all_agent_steps(selfplay: Mapping[str, Any]) -> float:
    """Agent-steps of a self-play stage: those of PPO, and of the distillation before it."""
    return float(selfplay["agent_steps"] + selfplay.get("distill", {}).get("agent_steps", 0))


@dataclass(frozen=True)
class Gpus:
    """GPUs and what was measured on one of them; methods return None where a figure is missing.

    Args:
        count: of all machines together. measured: by the check.
    """

    count: int
    measured: Measured

    def _model(self, pretrain: Mapping[str, Any]) -> tuple[str, float, tuple[str, ...]] | None:
        """The measured size that is nearest to the planned one, how much more the planned one computes, and what
        is guessed with that."""
        sizes = self.measured.matching(r"training (\w+), \d+ scenes, bf16")
        if not sizes:
            return None
        name = pretrain["size"]
        if name in sizes:
            return name, 1.0, ()
        model = ReferenceConfig(**pretrain["model"]) if name == "custom" else size_preset(name)
        nearest = min(sizes, key=lambda size: abs(math.log(_work(model) / _work(size_preset(size)))))
        factor = _work(model) / _work(size_preset(nearest))
        guess = f"size {name} is {factor:.2g} times {nearest}" if factor != 1 else ""
        return nearest, factor, (guess,) if guess else ()

    def _largest(self) -> int | None:
        """Agents of the largest scene that was measured."""
        agents = self.measured.matching(r"metric, 32 futures, (\d+) agents, map 1 times")
        return max(map(int, agents), default=None)

    def _scene(
        self, pretrain: Mapping[str, Any], fit: Mapping[str, Any]
    ) -> tuple[float, float, str, tuple[str, ...]] | None:
        """Of a scene in a training step: seconds; GB if it has as many agents as may be; network; guesses."""
        model = self._model(pretrain)
        if model is None:
            return None
        size, factor, guesses = model
        ((batch, _),) = self.measured.matching(rf"training {size}, (\d+) scenes, bf16").items()
        about = rf"training {size}, {batch} scenes, bf16"
        phases = self.measured.matching(rf"{about}: (copy|forward|backward|optimiser)")
        memory = self.measured.values.get(f"{about}: largest memory of a scene")
        largest = self._largest()
        if len(phases) < 4 or memory is None or largest is None:
            return None
        memory *= factor * max(1.0, fit["max_agents"] / largest)
        guesses = (*guesses, f"memory with {max(largest, fit['max_agents'])} agents in each scene")
        return factor * sum(phases.values()) / 1e3 / int(batch), memory, size, guesses

    def _step(self, scenes: int, seconds: float) -> float:
        """Seconds of a training step: of its scenes, but at least those of its launches."""
        launches = self.measured.values.get("training: a whole step: operators launched", 0.0)
        return max(scenes * seconds, launches * self.measured.values.get("a launch from Python", 0.0) / 1e6)

    def pretraining(self, pretrain: Mapping[str, Any]) -> GpuEstimate | None:
        """Teacher forcing; pretrain: options of the stage as plain values."""
        fit = pretrain["fit"]
        scene = self._scene(pretrain, fit)
        if scene is None:
            return None
        seconds, memory, size, guesses = scene
        count = min(self.count, fit["batch_size"])
        mine = -(-fit["batch_size"] // count)
        return GpuEstimate(
            count,
            fit["steps"] * self._step(mine, seconds),
            mine * memory,
            memory,
            f"{fit['steps']} steps of {mine} scenes a GPU, {1e3 * seconds:.1f} ms each ({size})",
            (*guesses, "loaders keep up"),
        )

    def finetuning(
        self, pretrain: Mapping[str, Any], finetune: Mapping[str, Any], token_steps: int
    ) -> GpuEstimate | None:
        """Closed-loop fine-tuning, whose step was not measured: a rollout of all scenes, then a training step.

        Args:
            pretrain, finetune: options of the stages. token_steps: of the vocabulary.
        """
        fit = finetune["fit"]
        scene = self._scene(pretrain, fit)
        decoding = self.measured.values.get("a decoding step of the reference: time of the clock")
        if scene is None or decoding is None:
            return None
        seconds, memory, size, guesses = scene
        count = min(self.count, fit["batch_size"])
        mine, tokens = -(-fit["batch_size"] // count), FUTURE_STEPS // token_steps
        if fit["recompute"]:
            guesses = (*guesses, "recompute: another forward pass, and less memory than said")
            seconds *= 4 / 3
        step = tokens * decoding / 1e3 + self._step(mine, seconds)
        return GpuEstimate(
            count,
            fit["steps"] * step,
            mine * memory,
            memory,
            f"{fit['steps']} steps of {tokens} tokens of {decoding:.0f} ms and {mine} scenes a GPU ({size})",
            (*guesses, "a token takes no longer for many scenes", "loaders keep up"),
        )

    def playing(self, selfplay: Mapping[str, Any]) -> GpuEstimate | None:
        """Anchored self-play; selfplay: options of the stage."""
        count = next(n for n in range(self.count, 0, -1) if selfplay["worlds"] % n == 0)
        mine = selfplay["worlds"] // count
        net, anchored = ", compiled" if selfplay.get("compile") else "", "trained and anchored to mini, maps known"
        if not self.measured.matching(rf"(\d+) worlds{net}: {anchored}"):
            net = ""
        rates = self.measured.matching(rf"(\d+) worlds{net}: {anchored}")
        if not rates:
            return None
        near = min(rates, key=lambda worlds: abs(math.log(int(worlds) / mine)))
        steps, memory, building, stacking, encoding = (
            self.measured.values.get(f"{near} worlds{net}: {name}")
            for name in (
                "agent-steps of an update",
                "largest memory",
                "a scene: world built",
                "a scene: world stacked and copied",
                "a scene: map encoded",
            )
        )
        if steps is None or memory is None or building is None or stacking is None or encoding is None:
            return None
        per_world, workers = steps / int(near), selfplay["workers"]
        driven = mine * per_world / rates[near]
        updates = all_agent_steps(selfplay) / (count * mine * per_world)
        pool, guesses = selfplay["pool"], ["anchor mini, 4 epochs"]
        if count > 1:
            guesses.append("GPUs do not wait for one another")
        if 0 < pool <= selfplay["cache_worlds"]:
            # All worlds stay on the GPU, and their maps encoded.
            seconds = pool * (building / max(1, workers) + (stacking + encoding) / 1e3) + updates * driven
            how = f"{pool} worlds built once, {building:.1f} s each on {max(1, workers)} cores"
            guesses.append("memory without that of all worlds, some 5 MB each")
        else:
            new = (selfplay["turnover"] or selfplay["worlds"]) / count
            built = new * building / max(1, workers)
            # Processes build worlds while others are driven; without them the training waits.
            busy = max(driven, built) if workers else driven + built
            seconds = updates * (busy + (mine * stacking + new * encoding) / 1e3)
            slow = ", which is slower" if built > driven and workers else ""
            how = f"{new:.0f} of them new, {built:.1f} s on {max(1, workers)} cores{slow}"
        return GpuEstimate(
            count,
            seconds,
            mine * memory / int(near),
            memory / int(near),
            f"{updates:.0f} updates of {mine} worlds a GPU, {driven:.1f} s each; {how}",
            tuple(guesses),
        )

    def sampling(self, scenarios: int, agent: str, pretrain: Mapping[str, Any], workers: int) -> GpuEstimate | None:
        """32 futures of each scenario.

        Args:
            scenarios: how many. agent: policy or reference. pretrain: options of that stage. workers: processes.
        """
        model = self._model(pretrain)
        if model is None or agent not in ("policy", "reference"):
            return None
        name, factor, guesses = ("policy", 1.0, ()) if agent == "policy" else model
        rate = self.measured.values.get(f"32 futures by {name}")
        memory = self.measured.values.get(f"32 futures by {name}: largest memory")
        largest = self._largest()
        if rate is None or memory is None or largest is None:
            return None
        if f"32 futures by {name}, one by one" not in self.measured.values:
            # Measured with a scene at a time.
            rows = policy_agent.MAX_ROWS_GPU if agent == "policy" else reference_agent.MAX_ROWS_GPU
            memory *= max(1.0, rows / (32 * largest))
            guesses = (
                *guesses,
                f"memory of {rows} agents at once",
                "several scenes at once are no faster than one",
            )
        processes = workers or self.count
        each = -(-processes // self.count)
        if each > 1:
            guesses = (*guesses, f"{each} processes on a GPU do not slow one another")
        return GpuEstimate(
            self.count,
            scenarios * factor / rate / processes,
            each * factor * memory,
            factor * memory,
            f"{scenarios} scenarios at {rate / factor:.2f} a second and process ({name})",
            guesses,
        )

    def scoring(self, scenarios: int) -> GpuEstimate | None:
        """The metric of so many scenarios."""
        times = self.measured.matching(r"metric, 32 futures, (\d+ agents), map 1 times")
        memories = self.measured.matching(r"metric, 32 futures, (\d+ agents), map 1 times: largest memory")
        if not times or not memories:
            return None
        # Checks differ in their largest scene; the newest comes last.
        agents, milliseconds = list(times.items())[-1]
        return GpuEstimate(
            self.count,
            scenarios * milliseconds / 1e3 / self.count,
            memories[agents],
            memories[agents],
            f"{scenarios} scenarios at {milliseconds:.0f} ms each ({agents})",
            ("reading and preparing scenes takes no time",),
        )
