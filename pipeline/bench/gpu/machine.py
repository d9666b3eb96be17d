"""The machine: versions, limits of the GPU, CUDA graphs, and steps on fake CUDA tensors."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib import metadata

import torch
from torch import Tensor

from pipeline.bench.gpu.inputs import Inputs
from pipeline.bench.rows import Row, seconds_on
from pipeline.simulator.episode import advance
from pipeline.simulator.observation import observe
from pipeline.simulator.step import State, agent_indices, reset
from pipeline.simulator.world import World

_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "lightning",
    "pyarrow",
    "scipy",
    "shapely",
    "tensorboardX",
    "tensorflow",
    "waymo-open-dataset-tf-2-12-0",
)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions(inputs: Inputs) -> Iterator[Row | str]:
    """Versions of Python and packages, and properties of the GPU."""
    # Not the kernel's name, which tells whose machine it is; the files are published.
    yield f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield ", ".join(f"{package} {_version(package)}" for package in _PACKAGES)
    yield f"CUDA of torch: {torch.version.cuda}; threads of torch: {torch.get_num_threads()}"
    yield Row("cores", os.cpu_count() or 0, "")
    if inputs.on_gpu:
        gpu = torch.cuda.get_device_properties(inputs.device)
        yield f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}"
        yield Row("memory of the GPU", gpu.total_memory / 1e9, "GB", 80)
        yield Row("multiprocessors", gpu.multi_processor_count, "", 132)
    yield Row("scenes of the data", len(inputs.scenes), "")
    agents = sum(int(scene.simulated.sum()) for scene in inputs.scenes) / len(inputs.scenes)
    yield Row("agents of a scene, mean", agents, "", 35)


def ceilings(inputs: Inputs) -> Iterator[Row]:
    """Upper limits of speed: a large copy, a large matrix product, and a kernel launch."""
    side = 8192 if inputs.on_gpu else 256
    one = torch.randn(side, side, device=inputs.device)
    other = torch.empty_like(one)
    # The first calls load libraries and raise the clock.
    for tensor in (one, one.bfloat16()):
        other.copy_(tensor @ tensor)
    seconds = seconds_on(inputs.device, lambda: other.copy_(one), 10)
    yield Row(
        "copy on the device, read and written",
        2 * one.numel() * 4 / seconds / 1e12,
        "TB/s",
        3.0 if inputs.on_gpu else None,
    )
    for title, tensor in (("float32", one), ("bf16", one.bfloat16())):
        seconds = seconds_on(inputs.device, lambda tensor=tensor: tensor @ tensor, 10)  # type: ignore[misc]
        estimate = 800 if title == "bf16" and inputs.on_gpu else None
        yield Row(f"matrix product, {title}", 2 * side**3 / seconds / 1e12, "TFLOP/s", estimate)
    small = torch.zeros(1, device=inputs.device)

    def launches() -> None:
        for _ in range(1000):
            small.add_(1.0)

    launches()
    yield Row("a launch from Python", 1e3 * seconds_on(inputs.device, launches), "us")


@torch.no_grad()
def graph(inputs: Inputs) -> Iterator[Row | str]:
    """Observation and step as CUDA graphs, if they can be captured."""
    if not inputs.on_gpu:
        yield "CUDA graphs need a GPU"
        return
    words, view = inputs.vocabulary.to(inputs.device), inputs.paper.view
    world = inputs.world(inputs.paper.worlds)
    index = agent_indices(world.exists)
    state, tokens = reset(world, torch.zeros_like(world.exists), view.history), torch.zeros_like(world.types)

    def observation() -> Tensor:
        return observe(world, state, index, view).ego

    def step() -> Tensor:
        return advance(world, state, tokens, world.exists, index, words, view.box_scale)[0].pose

    for name, work in (("observe", observation), ("step and events", step)):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        side.synchronize()
        plain = 1000 * seconds_on(inputs.device, work, 20)
        yield Row(f"{name}, {inputs.paper.worlds} worlds, plain", plain, "ms")
        captured = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(captured):
                result = work()
        except RuntimeError as error:
            yield f"{name}: cannot be captured: {str(error).strip().splitlines()[0]}"
            torch.cuda.synchronize()
            continue
        right = work()
        captured.replay()
        yield Row(f"{name}, replayed", 1000 * seconds_on(inputs.device, captured.replay, 20), "ms")
        yield Row(f"{name}, replayed: difference", float((result - right).abs().max()), "m")


def fake(inputs: Inputs) -> Iterator[Row | str]:
    """Observe and step on fake CUDA tensors, to find mixed devices; needs a CUDA build of torch but no GPU."""
    if torch.version.cuda is None:
        yield f"fake CUDA tensors need a CUDA build of torch; this is {torch.__version__}"
        return
    from torch._subclasses.fake_tensor import FakeTensorMode

    from data.scene import map_tensors
    from data.vocabulary import Vocabulary

    real, view = inputs.world(inputs.scale.compared, torch.device("cpu")), inputs.paper.view
    agents = agent_indices(real.exists)
    count, steps = len(agents[0]), inputs.vocabulary.token_steps
    with FakeTensorMode(allow_non_fake_inputs=False):

        def made(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

        world: World = map_tensors(real, made)
        words = Vocabulary(*(made(getattr(inputs.vocabulary, name)) for name in ("poses", "box", "tolerance")))
        agents = made(agents[0]), made(agents[1])
        state: State = reset(world, made(real.exists), view.history)
        for _ in range(2):
            seen = observe(world, state, agents, view)
            tokens, driven = made(real.types), made(real.exists)
            state, motion, _ = advance(world, state, tokens, driven, agents, words, view.box_scale)
    alike = seen.ego.shape[0] == count and motion.pose.shape[2] == steps and state.pose.device.type == "cuda"
    yield Row("decisions on fake CUDA tensors pass (1)", float(alike), "", 1)
