"""How heavy report and viewer are: size and time of a report, first paint, time of a frame, memory of the viewer.

    python scripts/studies/measure_pages.py --run runs/womd --scenarios womd/training --repeat 1000 --out /tmp/pages

With ``--pictures FOLDER`` it only draws a scene of the report with a picked agent, for the documentation. Use runs
on generated traffic for that: WOMD's licence does not allow pictures of its data to be given away.

Needs Chromium (CHROMIUM names it). Frames are those of the scenario with the most tracks; the viewer is asked for
scenes spread over all of its list. The records are copies under new ids: keep them out of what is published.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import sync_playwright

from data.sources import find_shards
from data.tfrecord import BrokenRecord, read_records, write_records
from data.wire import scenario_class
from scripts.checks.soak import own_mb

_ROOT = Path(__file__).resolve().parents[2]
_FRAMES = 200
_OPENED = 40
_DRAW = """(frames) => {
  const player = document.getElementById("player").player;
  const started = performance.now();
  for (let i = 0; i < frames; i++) player.seek(11 + (i % 79) + 0.5);
  return { milliseconds: (performance.now() - started) / frames, agents: player.scene.agents.simulated.length };
}"""
_PICK = """() => {
  const player = document.getElementById("player").player;
  player.seek(40);
  player.pick(player.scene.agents.sdc.indexOf(1));
  player.change({ log: true, trails: true });
}"""
_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def _repeated(data: str, count: int, out: Path) -> str:
    """Records under new ids, until there are so many; returns the id of the one with the most agents."""
    records = [item for shard in find_shards(data) for item in read_records(shard.url)]
    protos = [scenario_class().FromString(item) for item in records if not isinstance(item, BrokenRecord)]
    copies = []
    most = max(range(len(protos)), key=lambda index: len(protos[index].tracks))
    for number in range(count):
        proto = protos[number % len(protos)]
        proto.scenario_id = f"{number:016x}"
        copies.append(proto.SerializeToString())
    shards = max(1, count // 100)
    for shard in range(shards):
        write_records(out / f"validation.tfrecord-{shard:05d}-of-{shards:05d}", copies[shard::shards])
    return f"{most:016x}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _asked(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=120) as answer:
        return json.loads(answer.read())


def _viewer(browser: Any, folder: Path, largest: str) -> dict[str, Any]:
    port = _free_port()
    address = f"http://localhost:{port}"
    command = [sys.executable, "-m", "pipeline", "view", "--scenarios", str(folder), "--port", str(port)]
    figures: dict[str, Any] = {}
    with subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.DEVNULL) as process:
        started = time.perf_counter()
        while True:
            try:
                _asked(f"{address}/api/scenes")
                break
            except OSError:
                time.sleep(0.05)
        figures["answers_after_s"] = round(time.perf_counter() - started, 2)
        while not (page := _asked(f"{address}/api/scenes"))["complete"]:
            time.sleep(0.2)
        figures |= {"scenarios": page["found"], "all_found_after_s": round(time.perf_counter() - started, 2)}
        figures["memory_mb_list"] = round(own_mb(process.pid))
        seconds = []
        for number in range(0, page["found"], max(1, page["found"] // _OPENED)):
            opened_at = time.perf_counter()
            urllib.request.urlopen(f"{address}/api/scene/{number:016x}", timeout=120).read()
            seconds.append(time.perf_counter() - opened_at)
        figures["scene_s_mean"] = round(sum(seconds) / len(seconds), 3)
        figures["scene_s_most"] = round(max(seconds), 3)
        figures["memory_mb_after_scenes"] = round(own_mb(process.pid))
        tab = browser.new_page()
        tab.goto(f"{address}/#{largest}")
        tab.wait_for_selector("#player[data-scenario]", timeout=120_000)
        figures["viewer_first_paint_ms"] = round(tab.evaluate(_PAINT) or 0)
        drawn = tab.evaluate(_DRAW, _FRAMES)
        figures |= {"largest_agents": drawn["agents"], "frame_ms": round(drawn["milliseconds"], 2)}
        process.terminate()
    return figures


def _draw_pictures(browser: Any, report: Path, scene: int, out: Path) -> None:
    """The player in daylight and in the dark."""
    for theme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme=theme)
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-charts=drawn]", timeout=120_000)
        page.locator("#scene").select_option(str(scene))
        page.wait_for_selector(f"#player[data-scene='{scene}']")
        page.evaluate(_PICK)
        page.locator("#player").screenshot(path=out / f"player_{theme}.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished run")
    parser.add_argument("--scenarios", help="TFRecords that are repeated for the viewer")
    parser.add_argument("--repeat", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True, help="folder for the report and the records")
    parser.add_argument("--pictures", type=Path, help="draw pictures to this folder, and measure nothing")
    parser.add_argument("--scene", type=int, default=0, help="number of the drawn scene in the report")
    options = parser.parse_args(arguments)
    if options.scenarios is None and options.pictures is None:
        parser.error("give --scenarios or --pictures")
    options.out.mkdir(parents=True, exist_ok=True)
    report = (options.out / "report.html").resolve()
    started = time.perf_counter()
    run = ["--run", str(options.run.resolve()), "--out", str(report)]
    subprocess.run([sys.executable, "-m", "pipeline", "report", *run], cwd=_ROOT, check=True, capture_output=True)
    figures: dict[str, Any] = {"report_s": round(time.perf_counter() - started, 1)}
    figures["report_mb"] = round(report.stat().st_size / 1e6, 2)
    with sync_playwright() as engine:
        names = (os.environ.get("CHROMIUM"), shutil.which("chromium"), shutil.which("google-chrome"))
        path = next(filter(None, names), None)
        browser = engine.chromium.launch(executable_path=path, args=["--no-sandbox"])
        if options.pictures is not None:
            _draw_pictures(browser, report, options.scene, options.pictures)
            return 0
        largest = _repeated(options.scenarios, options.repeat, options.out / "records")
        tab = browser.new_page()
        opened_at = time.perf_counter()
        tab.goto(report.as_uri())
        tab.wait_for_selector("html[data-charts=drawn]", timeout=120_000)
        figures["report_all_drawn_s"] = round(time.perf_counter() - opened_at, 2)
        figures["report_first_paint_ms"] = round(tab.evaluate(_PAINT) or 0)
        figures["report_frame_ms"] = round(tab.evaluate(_DRAW, _FRAMES)["milliseconds"], 2)
        figures |= _viewer(browser, (options.out / "records").resolve(), largest)
        browser.close()
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
