"""What the viewer's server answers, and what it does not."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from data.errors import UserError
from data.tfrecord import write_records
from pipeline.viewing.library import Catalogue
from pipeline.viewing.report_scenes import load_explainer
from pipeline.viewing.scene_pack import unpack
from pipeline.viewing.shelves import RolloutShelf, open_shelf
from pipeline.viewing.view import SceneMaker, ViewConfig, run_view, viewer_app
from submission.realism import load_config
from tests.builders import scenario_proto

FIRST = f"{0:016x}"
LOCAL = ["localhost"]


def client_of(path: Path, *shelves, explainer=None) -> TestClient:
    catalogue = Catalogue(open_shelf(str(path)), shelves)
    catalogue.find()
    maker = SceneMaker(catalogue, load_config("2025"), explainer)
    return TestClient(viewer_app(maker, LOCAL), base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(made_run: Path) -> TestClient:
    shelves = [RolloutShelf(name, str(made_run / "sample" / "validation" / name)) for name in ("policy", "log")]
    explainer = load_explainer(made_run / "selfplay" / "policy.ckpt", made_run / "finetune" / "reference.ckpt")
    return client_of(made_run / "tokenize" / "validation", *shelves, explainer=explainer)


def test_pages_and_their_files(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for line in page.text.splitlines():
        if "/files/" in line:
            name = line.split("/files/")[1].split('"')[0]
            assert client.get(f"/files/{name}").status_code == 200, name


def test_a_list_and_a_scene(client: TestClient) -> None:
    page = client.get("/api/scenes", params={"least_agents": 3, "sort": "agents"}).json()
    assert page["complete"]
    assert [row["agents"] for row in page["rows"]] == [5, 4, 3]
    header, arrays = unpack(client.get(f"/api/scene/{FIRST}").content)
    assert header["scenario_id"] == FIRST
    assert [found["name"] for found in header["sets"]] == ["policy", "log"]
    assert header["sets"][0]["explained"] == {"0": ["policy", "reference"]}
    assert arrays["set0"].shape == (3, 2, 3, 80)
    assert client.get("/api/vocabulary").json()["seconds"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "path",
    [
        "/files/../server.py",
        "/files/..%2fserver.py",
        "/files/%2e%2e/%2e%2e/cli.py",
        "/files//etc/passwd",
        "/api/scene/..%2f..%2f..%2fetc%2fpasswd",
        "/api/scene//etc/passwd",
        "/api/scene/%00",
        "/api/scene/nonsense",
        "/etc/passwd",
    ],
)
def test_nothing_else_is_read(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text
    assert "root:" not in answer.text
    assert "error" in answer.json()


@pytest.mark.parametrize("query", ["least_agents=many", "least_score=nan", "sort=size", "first=x"])
def test_bad_questions_are_one_line(client: TestClient, query: str) -> None:
    answer = client.get(f"/api/scenes?{query}")
    assert answer.status_code == 400
    assert "expected" in answer.json()["error"]


@pytest.mark.parametrize(
    "query", ["least_agents=-5", "first=-3", "first=1e99", "least_agents=inf", "lights=perhaps"]
)
def test_odd_questions_do_no_harm(client: TestClient, query: str) -> None:
    assert client.get(f"/api/scenes?{query}").status_code == 200


def test_other_names_of_the_host_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_a_scene_that_cannot_be_read_any_more_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "validation.tfrecord-00000-of-00001"
    write_records(path, [scenario_proto(FIRST).SerializeToString()])
    client = client_of(path)
    path.write_bytes(path.read_bytes()[:5000])
    answer = client.get(f"/api/scene/{FIRST}")
    assert answer.status_code == 422
    assert "truncated" in answer.json()["error"]
    path.unlink()
    assert client.get(f"/api/scene/{FIRST}").status_code == 422


def test_rollouts_of_other_objects_are_told_and_the_scene_is_shown(made_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "validation.tfrecord-00000-of-00001"
    write_records(path, [scenario_proto(FIRST, agents=5).SerializeToString()])
    client = client_of(path, RolloutShelf("policy", str(made_run / "sample" / "validation" / "policy")))
    header, _ = unpack(client.get(f"/api/scene/{FIRST}").content)
    assert header["sets"] == []
    assert "not the objects to be simulated" in header["problems"][0]


def test_a_scene_without_a_future_or_road_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "testing.tfrecord-00000-of-00001"
    write_records(path, [scenario_proto(FIRST, steps=11, with_map=False, with_lights=False).SerializeToString()])
    header, arrays = unpack(client_of(path).get(f"/api/scene/{FIRST}").content)
    assert arrays["log"].shape[-1] == 11
    assert header["sets"] == []


def test_a_taken_port_is_one_line(made_run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: .*another port"):
            run_view(ViewConfig(port=port), scenarios=str(made_run / "tokenize" / "validation"))


def test_wrong_scores_are_one_line(made_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    for content, message in [("a,b\n1,2\n", "no columns"), ("scenario_id,metametric\nx,much\n", "is no number")]:
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            run_view(ViewConfig(port=0), scenarios=str(made_run / "tokenize" / "validation"), scores=path)
