"""Command ``view``: a local web viewer of scenarios and rollouts.

The server has a list of scenarios, one scene at a time, and the files of its page, nothing else. Ids that a browser
sends are looked up among those that were found. None of them ever becomes a path.
"""

from __future__ import annotations

import socket
import sys
import threading
import webbrowser
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from data.errors import UserError
from data.places import open_path
from data.scene import Scene
from pipeline.execution.tables import read_table
from pipeline.viewing.explaining import Explainer, Explanation
from pipeline.viewing.judging import judge, log_events
from pipeline.viewing.library import Catalogue, Filter
from pipeline.viewing.report_scenes import load_explainer
from pipeline.viewing.scene_pack import PAGE, SCRIPTS, RolloutSet, pack_scene, vocabulary_header
from pipeline.viewing.shelves import RolloutShelf, open_shelf
from submission.protos import Rollouts
from submission.realism import MetricConfig, load_config, prepare_scene, unscorable_reason

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
        name = open_path(path).name or str(path)
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


_ROWS = 100
_KEPT = 8
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_FILES = ("view.html", "view.js", "view.css", "page.css", *SCRIPTS)
# Nothing is fetched from anywhere else. Bars get their widths as styles of elements.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_SORTS = ("file", "id", "agents", "score")


@dataclass
class SceneMaker:
    """Packs scenes for the browser, one at a time, and keeps the last few.

    Attributes:
        catalogue: of scenarios. metric: scores and marks rollouts.
        explainer: explains the first ``explained`` rollouts of each set, if there is one.
    """

    catalogue: Catalogue
    metric: MetricConfig
    explainer: Explainer | None = None
    explained: int = 1

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def packed(self, scenario_id: str) -> bytes:
        """A scene with all its rollouts.

        Raises:
            KeyError: no such scenario. UserError: it, or its rollouts, cannot be read.
        """
        with self._lock:
            if scenario_id not in self._kept:
                scene = self.catalogue.scene(scenario_id)
                self._kept[scenario_id] = self._pack(scene, self.catalogue.rollouts(scenario_id))
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(scenario_id)
            return self._kept[scenario_id]

    def _pack(self, scene: Scene, found: Mapping[str, Rollouts]) -> bytes:
        context = None if unscorable_reason(scene) else prepare_scene(scene)
        sets, problems = [], []
        ids = scene.agents.id[scene.simulated].tolist()
        for name, rollouts in found.items():
            if (states := rollouts.of(ids)) is None:
                odd = sorted(set(rollouts.agent_id.tolist()) ^ set(ids))
                problems.append(f"{name}: not the objects to be simulated, first {odd[:3]}; not shown")
                continue
            judgement = None if context is None else judge(context, rollouts, self.metric)
            told: dict[int, Explanation] = {}
            if self.explainer is not None:
                told = {n: self.explainer.explain(scene, one) for n, one in enumerate(states[: self.explained])}
            sets.append(RolloutSet(name, states, judgement, told))
        events = None if context is None else log_events(context)
        return pack_scene(scene, sets, events, {"problems": problems}, level=3)


def _number(request: Request, name: str, default: float | None) -> float | None:
    text = request.query_params.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise HTTPException(400, f"{name}: expected a number, got {text[:40]!r}") from error
    if value != value:
        raise HTTPException(400, f"{name}: expected a number")
    return value


def _filter(request: Request) -> Filter:
    query = request.query_params
    sort = query.get("sort", "file")
    if sort not in _SORTS:
        raise HTTPException(400, f"sort: expected one of {', '.join(_SORTS)}")
    lights = {"": None, "yes": True, "no": False}.get(query.get("lights", ""))
    return Filter(
        text=query.get("text", "").strip(),
        least_agents=int(min(_number(request, "least_agents", 0) or 0, 1e6)),
        kinds=tuple(kind for kind in query.get("kinds", "").split(",") if kind),
        lights=lights,
        rollouts=query.get("rollouts") == "yes",
        least_score=_number(request, "least_score", None),
        most_score=_number(request, "most_score", None),
        sort=sort,
    )


def viewer_app(maker: SceneMaker, hosts: Sequence[str]) -> Starlette:
    """The web application.

    Args:
        maker: of scenes. hosts: names under which it may be reached; ``*`` allows all.
    """

    def scenes(request: Request) -> Response:
        first = _number(request, "first", 0) or 0
        page = maker.catalogue.page(_filter(request), int(max(0, min(first, 1e9))), _ROWS)
        return JSONResponse(asdict(page))

    def scene(request: Request) -> Response:
        name = request.path_params["scenario_id"]
        try:
            content = maker.packed(name)
        except KeyError as error:
            more = "" if maker.catalogue.page(Filter(), 0, 0).complete else " yet (still looking)"
            raise HTTPException(404, f"scenario {name[:80]!r} is not among those given{more}") from error
        except UserError as error:
            raise HTTPException(422, str(error)) from error
        return Response(content, media_type="application/octet-stream")

    def vocabulary(request: Request) -> Response:
        known = maker.explainer
        return JSONResponse(None if known is None else vocabulary_header(known.vocabulary))

    def file(request: Request) -> Response:
        name = request.path_params.get("name", "view.html")
        if name not in _FILES:
            raise HTTPException(404, "no such file")
        return Response((PAGE / name).read_bytes(), media_type=_TYPES[Path(name).suffix])

    def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, status_code=error.status_code)

    def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": f"internal error: {type(error).__name__}"}, status_code=500)

    routes = [
        Route("/", file),
        Route("/files/{name}", file),
        Route("/api/scenes", scenes),
        Route("/api/scene/{scenario_id:path}", scene),
        Route("/api/vocabulary", vocabulary),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
        ],
        exception_handlers={HTTPException: failed, Exception: broken},
    )


async def _with_headers(request: Request, proceed: RequestResponseEndpoint) -> Response:
    response = await proceed(request)
    response.headers.update(_HEADERS)
    return response
