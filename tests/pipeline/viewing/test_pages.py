"""Report and viewer in a real browser: what is clicked happens, and what is drawn is where it belongs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.report import ReportConfig, run_report

_ROOT = Path(__file__).parents[3]
FIRST = f"{0:016x}"


def opened(browser: Any, address: str, **options: Any) -> Any:
    """A page whose errors fail the test."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.goto(address)
    wait_until(page, "document.getElementById('player').player !== undefined")
    return page


def wait_until(page: Any, expression: str, seconds: float = 30.0) -> None:
    """Ask until it is true; the browser's own waiting is forbidden by the viewer's security policy."""
    ends = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < ends, expression
        time.sleep(0.05)


def player(page: Any, expression: str) -> Any:
    return page.evaluate(
        f"(() => {{ const p = document.getElementById('player').player; return {expression}; }})()"
    )


def pixel_at_agent(page: Any, agent: int) -> list[int]:
    """Colour of the canvas where an agent is now, slightly behind its middle."""
    script = """(agent) => {
      const p = document.getElementById('player').player;
      const { set, rollout, step } = p.moment;
      const [x, y, h] = p.scene.pose(set, rollout, agent, step);
      const [left, top] = p.board.toScreen(x - 0.5 * Math.cos(h), y - 0.5 * Math.sin(h));
      const ratio = p.board.ratio;
      return Array.from(p.board.context.getImageData(left * ratio, top * ratio, 1, 1).data).slice(0, 3);
    }"""
    return list(page.evaluate(script, agent))


def colour(page: Any, name: str) -> list[int]:
    text = player(page, f"p.board.colour['{name}']")
    return [int(text[start : start + 2], 16) for start in (1, 3, 5)]


@pytest.fixture(scope="module")
def report(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("pages") / "report.html"
    run_report(ReportConfig(scenes=4, workers=1), run=made_run, out=out)
    return out.as_uri()


def test_the_report_opens_from_the_disk_without_a_network(browser: Any, report: str) -> None:
    page = opened(browser, report, offline=True)
    page.wait_for_selector("html[data-charts=drawn]")
    assert page.locator(".chart svg").count() == page.locator(".chart").count() > 5
    assert page.problems == []


def test_playing_scrubbing_and_stepping(browser: Any, report: str) -> None:
    page = opened(browser, report)
    root = page.locator("#player")
    assert root.get_attribute("data-step") == "10.00"
    page.locator("[data-control=speed]").select_option("4")
    page.locator("[data-control=play]").click()
    wait_until(page, "Number(document.getElementById('player').dataset.step) > 14")
    page.locator("[data-control=play]").click()
    stopped = root.get_attribute("data-step")
    time.sleep(0.3)
    assert root.get_attribute("data-step") == stopped
    page.locator("[data-control=time]").fill("50")
    assert root.get_attribute("data-step") == "50.00"
    assert page.locator(".clock").inner_text() == "+4.0 s"
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    assert root.get_attribute("data-step") == "51.00"
    page.keyboard.press("End")
    assert root.get_attribute("data-step") == "90.00"
    # Playing at the end begins anew.
    page.keyboard.press(" ")
    wait_until(page, "Number(document.getElementById('player').dataset.step) < 60")
    assert page.problems == []


def test_rollouts_and_agents_differ_and_are_drawn_where_they_are(browser: Any, report: str) -> None:
    page = opened(browser, report)
    root = page.locator("#player")
    page.locator("[data-control=time]").fill("80")
    places = []
    for rollout in range(3):
        page.locator("[data-control=rollout]").select_option(str(rollout))
        assert root.get_attribute("data-rollout") == str(rollout)
        places.append(player(page, f"p.scene.pose(0, {rollout}, 0, 80)"))
        player(page, "(p.board.view.x = p.scene.pose(0, p.moment.rollout, 0, 80)[0], 0)")
        player(page, "(p.board.view.y = p.scene.pose(0, p.moment.rollout, 0, 80)[1], p.draw(), 0)")
        assert pixel_at_agent(page, 0) in (colour(page, "sdc"), colour(page, "vehicle"), colour(page, "canvas"))
    assert len({tuple(place) for place in places}) == 3
    page.keyboard.press("]")
    assert root.get_attribute("data-rollout") == "0"
    page.locator("[data-control=set]").select_option("-1")
    page.locator("[data-control=fit]").click()
    assert pixel_at_agent(page, 0) == colour(page, "sdc")
    # Seeking in the log moves the AV along its recorded way: 5 m/s.
    here, there = player(page, "p.scene.pose(-1, 0, 0, 20)"), player(page, "p.scene.pose(-1, 0, 0, 40)")
    assert there[0] - here[0] == pytest.approx(10.0, abs=0.02)
    assert page.problems == []


def test_picking_an_agent_shows_what_is_known_of_it(browser: Any, report: str) -> None:
    page = opened(browser, report)
    page.locator("[data-control=time]").fill("30")
    where = player(page, "p.board.toScreen(...p.scene.pose(p.moment.set, p.moment.rollout, 0, 30))")
    page.locator("canvas").click(position={"x": where[0], "y": where[1]})
    assert page.locator("#player").get_attribute("data-agent") == "100"
    details = page.locator(".details").inner_text()
    assert "vehicle 100" in details
    assert "the AV" in details
    assert "distance to road edge" in details
    assert page.locator(".details table[data-model]").count() == 2
    share = page.locator(".details table[data-model=policy] .number").first.inner_text()
    assert float(share) == pytest.approx(
        player(page, "p.scene.decision(0, 0, 0, 30, p.vocabulary.seconds).opinions[0].top[0].share"), abs=1e-3
    )
    page.keyboard.press("Escape")
    assert page.locator("#player").get_attribute("data-agent") == ""
    page.locator("[data-control=agent]").select_option(index=1)
    assert page.locator("#player").get_attribute("data-agent") != ""
    assert page.problems == []


def test_log_behind_trails_zoom_and_pan_change_the_picture(browser: Any, report: str) -> None:
    page = opened(browser, report)
    page.locator("[data-control=time]").fill("80")

    def picture() -> str:
        return str(player(page, "p.canvas.toDataURL()"))

    pictures = [picture()]
    for control in ("log", "trails", "closer", "wider"):
        page.locator(f"[data-control={control}]").click()
        pictures.append(picture())
        assert pictures[-1] != pictures[-2], control
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 230)
    page.mouse.up()
    assert picture() != pictures[-1]
    scale = player(page, "p.board.view.scale")
    page.locator("canvas").focus()
    page.mouse.wheel(0, -300)
    wait_until(page, f"document.getElementById('player').player.board.view.scale > {scale}")
    assert page.problems == []


def test_other_scenes_and_the_other_theme(browser: Any, report: str) -> None:
    page = opened(browser, report)
    first = player(page, "p.scene.header.scenario_id")
    page.locator("#next").click()
    page.wait_for_selector("#player[data-scene='1']")
    assert player(page, "p.scene.header.scenario_id") != first
    assert "lost most" in page.locator("#reason").inner_text()
    light = colour(page, "canvas")
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert sum(colour(page, "canvas")) < sum(light) / 3
    assert page.problems == []


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_wider_than_the_screen(browser: Any, report: str, width: int) -> None:
    page = opened(browser, report, viewport={"width": width, "height": 800})
    page.wait_for_selector("html[data-charts=drawn]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def viewer(made_run: Path) -> Iterator[str]:
    port = free_port()
    address = f"http://localhost:{port}/"
    command = [sys.executable, "-m", "pipeline", "view", "--port", str(port)]
    command += ["--scenarios", str(made_run.parent / "womd" / "validation")]
    command += ["--rollouts", str(made_run / "sample" / "validation" / "policy")]
    command += ["--scores", str(made_run / "evaluate" / "policy")]
    with subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.PIPE) as process:
        for _ in range(600):
            try:
                urllib.request.urlopen(address, timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
                time.sleep(0.1)
        yield address
        process.terminate()


def test_searching_filtering_and_opening(browser: Any, viewer: str) -> None:
    page = opened(browser, viewer)
    page.wait_for_selector("#player[data-scenario]")
    wait_until(page, "document.querySelectorAll('#rows a').length === 4")
    page.locator("#least_agents").fill("4")
    wait_until(page, "document.querySelectorAll('#rows a').length === 2")
    page.locator("#least_agents").fill("0")
    wanted = f"{2:016x}"
    page.locator("#text").fill(wanted[-3:])
    wait_until(page, "document.querySelectorAll('#rows a').length === 1")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#player[data-scenario='{wanted}']")
    assert page.locator("#title").inner_text() == wanted
    assert player(page, "p.scene.header.sets[0].name") == "policy"
    assert "1 of 4 scenarios" in page.locator("#status").inner_text()
    assert page.problems == []


def test_an_unknown_id_is_told(browser: Any, viewer: str) -> None:
    page = opened(browser, viewer)
    page.goto(f"{viewer}#../../etc/passwd")
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#error").inner_text() == "scenario '../../etc/passwd' is not among those given"
