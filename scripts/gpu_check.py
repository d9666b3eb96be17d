"""Check this machine's GPU: agreement with the CPU, speed, and waits, as a table and gpu_check.json.

    make gpu-check                                    everything on a machine with all packages installed
    python scripts/gpu_check.py --prepare FOLDER      prepare the folder for a bare machine with a GPU
    python scripts/gpu_check.py --data FOLDER         on that machine, with torch, numpy, pyarrow and scipy
    python scripts/gpu_check.py --device cpu          the same steps at the smallest sizes, without a GPU

Each step has a time limit, steps fail independently, and both files are written after every step. docs/gpu.md
explains the rows. Exit status: 0 all steps done, 1 a step failed or ran out of time.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.bench.gpu.travelling import missing_packages, unpack

_ROOT = Path(__file__).resolve().parents[1]


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _no_gpu() -> str | None:
    """Why there is no usable GPU and what to do, in one line; None if there is one."""
    import torch

    if torch.cuda.is_available():
        return None
    build = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        reason, advice = f"{build} is a build without CUDA", "install a CUDA build of torch"
    elif not shutil.which("nvidia-smi"):
        reason = f"{build} has CUDA {torch.version.cuda}, and there is no nvidia-smi"
        advice = "install NVIDIA's driver"
    else:
        reason = f"{build} has CUDA {torch.version.cuda}, and sees {torch.cuda.device_count()} devices"
        advice = "compare it with the driver version of nvidia-smi, and check CUDA_VISIBLE_DEVICES"
    return f"no usable CUDA device: {reason}; {advice}, or give --device cpu to try the steps without one"


def _commit() -> str:
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _check(data: Path, out: Path, device: str, options: argparse.Namespace) -> int:
    import torch

    from pipeline.bench.gpu.runner import JSON_FILE, TABLE_FILE, StepResult, Task, run_steps, write
    from pipeline.bench.gpu.steps import STEPS

    card = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    about = {
        "card": card,
        "commit": options.commit or _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    steps = [step for step in STEPS if not options.only or step.name in options.only]
    log = out / "gpu_check.log"
    log.unlink(missing_ok=True)

    def report(results: list[StepResult]) -> None:
        text = write(out, about, results)
        if len(results) == len(steps):
            print(text)
        else:
            last = results[-1]
            print(f"{last.step}: {last.state}, {last.seconds:.0f} s, {len(last.rows)} figures", flush=True)
            for check, error in last.failures.items():
                print(f"    FAILED {check}: {error}", flush=True)

    tiny = options.size == "tiny" or (options.size is None and device == "cpu")
    results = run_steps(steps, Task(data.resolve(), device, tiny, log.resolve()), options.budget, report)
    print(f"{out / TABLE_FILE}, {out / JSON_FILE}; output of the steps: {log}")
    return int(any(step.state != "done" for step in results))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python scripts/gpu_check.py",
    )
    parser.add_argument(
        "--prepare", type=Path, metavar="FOLDER", help="only prepare this folder for a bare machine"
    )
    parser.add_argument("--run", type=Path, help="use scenes and models of this finished run of make stages")
    parser.add_argument("--python", default="3.12", help="version of Python on the bare machine, for its wheels")
    parser.add_argument("--no-wheels", action="store_true", help="prepare without wheels")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="prepared folder; made under OUT if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="folder for table, JSON and log")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), help="by default full on cuda, tiny on cpu")
    parser.add_argument(
        "--budget", type=float, default=480.0, help="seconds for all steps; steps that do not fit are skipped"
    )
    parser.add_argument("--only", nargs="+", metavar="STEP", help="some of the steps")
    parser.add_argument("--commit", help="of the code, where there is no git")
    options = parser.parse_args(arguments)
    if needed := missing_packages():
        return _fail(f"missing Python packages: {', '.join(needed)}; install them with pip")
    if options.prepare is None and options.device == "cuda" and (reason := _no_gpu()):
        return _fail(reason)
    from data.errors import UserError

    with tempfile.TemporaryDirectory() as site:
        try:
            if options.data is not None:
                unpack(options.data, Path(site))
            from pipeline.bench.gpu.prepare import READY_FILE, prepare

            data = options.data or options.prepare or options.out / "data"
            if options.data is None and (options.prepare or not (data / READY_FILE).is_file()):
                wheels = options.prepare is not None and not options.no_wheels
                prepare(data, options.run, options.python, wheels)
                print(f"{data}: prepared")
            if options.prepare is not None:
                return 0
            if not (data / READY_FILE).is_file():
                return _fail(
                    f"{data}: no {READY_FILE}; make it with --prepare on a machine with all packages installed"
                )
            options.out.mkdir(parents=True, exist_ok=True)
            return _check(data, options.out, options.device, options)
        except UserError as error:
            return _fail(str(error))


if __name__ == "__main__":
    sys.exit(main())
