"""The code and style of the pages, as files."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PAGE", "SCRIPTS"]

PAGE = Path(__file__).with_name("page")
# In this order; each file relies on those before it.
SCRIPTS = ("pack.js", "scene.js", "canvas.js", "player.js", "details.js", "theme.js")
