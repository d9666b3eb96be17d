"""A report says what the run's files say, is one file, and says what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from data.completeness import Origin, Remarks
from data.errors import UserError
from data.store import SceneStore, write_shard
from pipeline.stages.report import ReportConfig, run_report
from pipeline.viewing.report_page import json_for_page
from pipeline.viewing.report_scenes import choose_scenes

CONFIG = ReportConfig(scenes=2, workers=1)


class Checker(HTMLParser):
    """Elements, texts, and everything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            str(value) for name, value in attrs if name in ("src", "href") and not str(value).startswith("#")
        ]
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def page(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "report.html"
    figures = run_report(CONFIG, run=made_run, out=out)
    assert figures["scenes"] == 2
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    return out.read_text()


def test_one_file_with_the_figures_of_the_run(page: str, made_run: Path) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.fetched == []
    text = " ".join(" ".join(checker.text).split())
    for agent in ("log", "constant_velocity", "reference", "policy"):
        report = json.loads((made_run / "evaluate" / agent / "metrics.json").read_text())
        assert f"{report['metrics']['metametric']:.4f}" in text
        for name, value in report["motion"].items():
            assert f"{value:.4f}" in text, name
    assert "Not run yet: pretrain, package, validate" in text
    assert "Read with care" in text
    assert "trained agent steps per second 123" in text
    assert "lost most: object" in page
    assert len(page) < 5e6


def test_charts_hold_the_figures(page: str, made_run: Path) -> None:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    charts = json.loads(found[1])
    values = [row for rows in charts[0]["datasets"].values() for row in rows]
    report = json.loads((made_run / "evaluate" / "policy" / "metrics.json").read_text())
    (policy,) = [row for row in values if row["agent"] == "policy"]
    assert policy["realism"] == report["metrics"]["metametric"]
    assert [policy["low"], policy["high"]] == report["intervals"]["metametric"]
    curves = json.dumps(charts)
    for series in ("kl", "entropy", "collision", "loss"):
        assert f'"series": "{series}"' in curves


def test_scenes_are_the_worst_and_best() -> None:
    values = {"a": 0.5, "b": 0.1, "c": 0.9, "d": 0.4}
    assert choose_scenes(values, 3) == [("b", "worst 1"), ("d", "worst 2"), ("c", "best 1")]
    assert [name for name, _ in choose_scenes(values, 9)] == ["b", "d", "a", "c"] or len(
        {name for name, _ in choose_scenes(values, 9)}
    ) == 4
    assert choose_scenes(values, 0) == []
    assert choose_scenes({}, 4) == []


def test_what_does_not_fit_is_left_out_and_said(made_run: Path, tmp_path: Path) -> None:
    figures = run_report(ReportConfig(scenes=2, workers=1, max_mb=2.5001), run=made_run, out=tmp_path / "r.html")
    assert figures["scenes"] == 0
    assert "2 of 2 scenes are left out" in (tmp_path / "r.html").read_text()


def test_half_a_run_has_half_a_report(run: Path, tmp_path: Path) -> None:
    for stage in ("evaluate", "sample", "selfplay"):
        shutil.rmtree(run / stage)
    figures = run_report(CONFIG, run=run, out=tmp_path / "report.html")
    assert figures["scenes"] == 0
    text = (tmp_path / "report.html").read_text()
    assert "Nothing is scored yet" in text
    assert "There are no rollouts to show" in text


def test_what_the_sources_lack_is_said(run: Path, tmp_path: Path) -> None:
    """Once for a split, with the number of scenarios and their ids."""
    store = SceneStore(run / "tokenize" / "validation")
    remarks = Remarks()
    for name in ("<b>1", "2"):
        remarks.add("derived_edges", scenario_id=name, items=0)
    [target] = (run / "tokenize" / "validation").glob("*.parquet")
    write_shard(target, list(store), lambda: Origin(remarks=remarks))
    run_report(ReportConfig(scenes=0), run=run, out=tmp_path / "report.html")
    checker = Checker()
    checker.feed((tmp_path / "report.html").read_text())
    [line] = [text for text in checker.text if "derived ones" in text]
    assert line.startswith("validation: 2 scenarios have no road edges in their source")
    assert line.endswith("(<b>1, 2)")


def test_texts_from_files_are_texts(run: Path, tmp_path: Path) -> None:
    evil = run.with_name("<img src=x onerror=alert(1)>")
    run.rename(evil)
    run_report(ReportConfig(scenes=0), run=evil, out=tmp_path / "report.html")
    checker = Checker()
    checker.feed((tmp_path / "report.html").read_text())
    assert "img" not in checker.seen
    assert evil.name in checker.text
    assert json_for_page("</script>&") == '"\\u003c/script>\\u0026"'


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: [path.rename(run.parent / path.name) for path in run.iterdir()], "no finished stage"),
        (lambda run: (run / "evaluate" / "policy" / "metrics.json").write_text("{}"), "not what evaluate writes"),
        (lambda run: (run / "evaluate" / "policy" / "metrics.json").write_text("["), "not what evaluate writes"),
        (lambda run: (run / "evaluate" / "policy" / "per_scenario.csv").write_text("a\n1\n"), "no metametric"),
        (lambda run: (run / "evaluate" / "policy" / "per_scenario.csv").write_bytes(b"\xff\xfe"), "table"),
        (lambda run: (run / "tokenize" / "vocabulary.pt").write_bytes(b"x"), "vocabulary"),
        (lambda run: (run / "selfplay" / "policy.ckpt").write_bytes(b"x"), "checkpoint"),
        (
            lambda run: [
                file.write_bytes(b"x") for file in (run / "sample/validation/policy").glob("*.binproto-*")
            ],
            "truncated|not a protobuf",
        ),
    ],
)
def test_damaged_files_are_one_line(spoil, message: str, run: Path, tmp_path: Path) -> None:
    spoil(run)
    with pytest.raises(UserError, match=message) as caught:
        run_report(CONFIG, run=run, out=tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_wrong_options_are_one_line(made_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--scenes -1"):
        ReportConfig(scenes=-1)
    with pytest.raises(UserError, match="--max_mb 1"):
        ReportConfig(max_mb=1)
    with pytest.raises(UserError, match="is a folder"):
        run_report(CONFIG, run=made_run, out=tmp_path)
    out, sheet = tmp_path / "report.html", tmp_path / "sheet.png"
    with pytest.raises(UserError, match="--scenario nothing"):
        run_report(ReportConfig(scenes=0), run=made_run, out=out, scenario="nothing", sheet=sheet)
    # Nothing was rendered before that, and a scene is named for pictures alone.
    assert not out.exists()
    with pytest.raises(UserError, match="--scenario: names the scene of --video"):
        run_report(ReportConfig(scenes=0), run=made_run, out=out, scenario=f"{0:016x}")


def test_report_writes_pictures_on_request(made_run: Path, tmp_path: Path) -> None:
    config, out, figures = ReportConfig(scenes=0), tmp_path / "report.html", tmp_path / "figures"
    video, sheet = tmp_path / "a.mp4", tmp_path / "a.png"
    written = run_report(config, run=made_run, out=out, video=video, sheet=sheet, figures=figures)
    assert (tmp_path / "a.mp4").stat().st_size > 1000
    with Image.open(sheet) as image:
        # The log, the policy and the reference, every two seconds.
        assert image.size == (5 * 320, 3 * 346)
    kinds = sorted(Path(path).name for path in written["figures"])
    assert [name for name in kinds if name.startswith("likelihoods")] == ["likelihoods.pdf", "likelihoods.png"]
    assert any(name.startswith("scene_") for name in kinds)
    first = [Path(path).read_bytes() for path in written["figures"]]
    again = run_report(config, run=made_run, out=out, figures=figures)
    assert [Path(path).read_bytes() for path in again["figures"]] == first
