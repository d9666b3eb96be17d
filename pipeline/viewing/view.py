"""Command ``view``: a local web viewer of scenarios and rollouts."""

from __future__ import annotations

import socket
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn

from data.errors import UserError
from data.places import place
from pipeline.viewing.library.catalogue import Catalogue
from pipeline.viewing.library.rollout_shelf import RolloutShelf
from pipeline.viewing.library.scenario_shelf import open_shelf
from pipeline.viewing.report.facts import read_table
from pipeline.viewing.report.scenes import load_explainer
from pipeline.viewing.server import SceneMaker, viewer_app
from submission.realism import load_config

__all__ = ["ViewConfig", "run_view"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ViewConfig:
    """How it serves.

    Args:
        host: address to listen on; others than this machine's own can be reached from the network, by anybody.
        port: to listen on; 0 takes any free one.
        metric: 2025, 2024 or 2025_scenario_gen, by which rollouts are judged.
        explained: rollouts of each set for which tokens of --policy and --reference are shown.
        browser: open the page in a browser.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    metric: str = "2025"
    explained: int = 1
    browser: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise UserError(f"--port {self.port}: expected 0 to 65535")
        if self.explained < 0:
            raise UserError(f"--explained {self.explained}: expected 0 or more")


def _names(paths: list[str]) -> list[str]:
    """A short name for each path, and a different one for each."""
    names: list[str] = []
    for path in paths:
        name = place(path).name or str(path)
        count = sum(known == name or known.startswith(f"{name} (") for known in names)
        names.append(f"{name} ({count + 1})" if count else name)
    return names


def _scores(path: Path) -> dict[str, float]:
    """Realism by scenario id.

    Raises:
        UserError: not what ``evaluate`` writes.
    """
    columns, rows = read_table(path / "per_scenario.csv" if path.is_dir() else path)
    if not {"scenario_id", "metametric"} <= set(columns):
        raise UserError(f"{path}: no columns scenario_id and metametric; expected per_scenario.csv of evaluate")
    try:
        return {row["scenario_id"]: float(row["metametric"]) for row in rows}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: a metametric is no number ({error})") from error


def _listening(config: ViewConfig) -> socket.socket:
    """A socket that is bound: the port is taken before anything is promised."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((config.host, config.port))
    except OSError as error:
        raise UserError(
            f"--host {config.host} --port {config.port}: {error.strerror or error}; take another port, or 0 for any"
        ) from error
    return found


def run_view(
    config: ViewConfig,
    *,
    scenarios: str,
    rollouts: list[str] | str | None = None,
    scores: Path | None = None,
    policy: Path | None = None,
    reference: Path | None = None,
) -> dict[str, Any]:
    """Serve a web page with scenarios and their rollouts, on this machine alone unless told otherwise.

    Args:
        config: how it serves.
        scenarios: WOMD TFRecords or an ingested store: a file, folder, glob or URL.
        rollouts: file, folder or glob of rollouts, or a submission archive; several as '["A", "B"]'. Each is shown
            by its name.
        scores: per_scenario.csv of evaluate, to filter and sort by realism.
        policy: policy.ckpt, to show its likeliest tokens for a picked agent.
        reference: reference.ckpt, likewise.

    Raises:
        UserError: nothing at a path, or the port is taken.
    """
    given = [rollouts] if isinstance(rollouts, str) else list(rollouts or [])
    shelves: list[RolloutShelf] = [
        RolloutShelf(name, path) for name, path in zip(_names(given), given, strict=True)
    ]
    catalogue = Catalogue(open_shelf(scenarios), shelves, _scores(scores) if scores else None)
    explainer = load_explainer(policy, reference) if policy or reference else None
    maker = SceneMaker(catalogue, load_config(config.metric), explainer, config.explained)
    # A scene at a time is enough for one person, and the machine is left to whatever else it does.
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    listening = _listening(config)
    local = config.host in _LOOPBACK
    port = listening.getsockname()[1]
    address = f"http://{'localhost' if local else config.host}:{port}/"
    if not local:
        print(f"warning: {address} can be reached by anybody on the network", file=sys.stderr)
    app = viewer_app(maker, [*_LOOPBACK, "[::1]"] if local else ["*"])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    catalogue.start()
    print(f"{address}  (end with Ctrl-C)", file=sys.stderr, flush=True)
    if config.browser:
        webbrowser.open(address)
    try:
        server.run(sockets=[listening])
    finally:
        catalogue.stop()
        listening.close()
    return {"address": address}
