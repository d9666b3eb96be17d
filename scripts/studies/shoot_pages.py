"""Pictures of a report, for the documentation: the results, and a scene with a picked agent.

    python scripts/studies/shoot_pages.py --report runs/demo/report/report.html --out docs/pictures

Use reports of generated traffic: WOMD's licence does not allow pictures of its data to be given away.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

_PICK = """() => {
  const player = document.getElementById("player").player;
  player.seek(40);
  player.pick(player.scene.agents.sdc.indexOf(1));
  player.change({ log: true, trails: true });
}"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--scene", type=int, default=0, help="number of the scene in the report")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args(arguments)
    names = (os.environ.get("CHROMIUM"), shutil.which("chromium"), shutil.which("google-chrome"))
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=next(filter(None, names), None), args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme=theme)
            page.goto(options.report.resolve().as_uri())
            page.wait_for_selector("html[data-charts=drawn]", timeout=120_000)
            page.locator("#scene").select_option(str(options.scene))
            page.wait_for_selector(f"#player[data-scene='{options.scene}']")
            page.evaluate(_PICK)
            page.locator("#player").screenshot(path=options.out / f"player_{theme}.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
