"""``python -m pipeline.bench [--only NAME]``: print a table and write it to runs/bench.json."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from data.files import write_json
from pipeline.bench.rows import Row
from pipeline.execution.processes import keep_freed_memory
from pipeline.execution.tables import render_table

_BENCHES = ("ingest", "metric", "reference", "sample", "selfplay")
# Needs packages of requirements-dev.txt.
_EXTRA = ("onnx",)
# Take checkpoints.
_TRAINED = ("sample", "onnx")


def _cells(row: Row) -> list[str]:
    numbers = ["" if value is None else f"{value:,.4g}" for value in (row.value, row.baseline, row.ratio)]
    return [row.name, numbers[0], row.unit, numbers[1], numbers[2], row.device]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=(*_BENCHES, *_EXTRA), help="only this benchmark")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="JSON file")
    parser.add_argument("--policy", type=Path, help="policy.ckpt for sample and onnx, instead of random weights")
    parser.add_argument(
        "--reference", type=Path, help="reference.ckpt for sample and onnx, instead of random weights"
    )
    options = parser.parse_args(arguments)
    checkpoints = {"policy": options.policy, "reference": options.reference}
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in [options.only] if options.only else _BENCHES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        bench = importlib.import_module(f"pipeline.bench.{name}").bench
        rows += bench(**checkpoints) if name in _TRAINED else bench()
    print(render_table([["what", "value", "unit", "baseline", "ratio", "device"], *map(_cells, rows)]))
    write_json(options.out, [asdict(row) for row in rows])
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
