"""Building a SUMO network with lanes, junctions, crossings and signals from a skeleton of streets."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.traffic.skeleton import CrossSection, Point, Skeleton
from data.traffic.sumo import run_tool

# Vehicle classes that may use a driving lane. The permissions of a lane tell its class: parking strips and medians
# allow none.
DRIVING = ("passenger", "truck", "bus", "motorcycle", "delivery", "bicycle")


def _lane(edge: ElementTree.Element, width: float, allow: Sequence[str]) -> None:
    index = str(len(edge))
    permission = {"allow": " ".join(allow)} if allow else {"disallow": "all"}
    ElementTree.SubElement(edge, "lane", {"index": index, "width": f"{width:.2f}", **permission})


def _edge(
    parent: ElementTree.Element,
    name: str,
    ends: tuple[str, str],
    section: CrossSection,
    shape: Sequence[Point],
    spread: str,
) -> None:
    """Write one direction; lanes are numbered from the kerb inwards."""
    edge = ElementTree.SubElement(
        parent,
        "edge",
        {
            "id": name,
            "from": ends[0],
            "to": ends[1],
            "speed": f"{section.speed:.4f}",
            "priority": str(section.priority),
            "spreadType": spread,
        },
    )
    if section.sidewalk:
        _lane(edge, section.sidewalk, ["pedestrian"])
    if section.parking:
        _lane(edge, section.parking, [])
    if section.bike:
        _lane(edge, section.bike, ["bicycle"])
    driving = [kind for kind in DRIVING if not (section.bike and kind == "bicycle")]
    for _ in range(section.lanes):
        _lane(edge, section.lane_width, driving)
    if section.median:
        _lane(edge, section.median, [])
    edge.set("numLanes", str(len(edge)))
    if shape:
        edge.set("shape", " ".join(f"{x:.3f},{y:.3f}" for x, y in shape))


def build_network(rng: np.random.Generator, skeleton: Skeleton, scratch: Path) -> Path:
    """Build the network with netconvert and return its file.

    Args:
        rng: draws the signal plans. skeleton: the streets. scratch: folder for the files.

    Raises:
        SumoError: netconvert failed.
    """
    nodes, edges = ElementTree.Element("nodes"), ElementTree.Element("edges")
    for name, node in skeleton.nodes.items():
        attributes = {"id": name, "x": f"{node.x:.3f}", "y": f"{node.y:.3f}", "type": node.kind}
        ElementTree.SubElement(nodes, "node", {**attributes, "radius": f"{node.radius:.2f}"})
    for street in skeleton.streets:
        a, b = (skeleton.nodes[name] for name in (street.a, street.b))
        line = [(a.x, a.y), *street.shape, (b.x, b.y)] if street.shape else []
        spread = "center" if street.one_way else "right"
        _edge(edges, f"{street.a}_{street.b}", (street.a, street.b), street.section, line, spread)
        if not street.one_way:
            _edge(edges, f"{street.b}_{street.a}", (street.b, street.a), street.section, line[::-1], spread)
    ElementTree.ElementTree(nodes).write(scratch / "world.nod.xml")
    ElementTree.ElementTree(edges).write(scratch / "world.edg.xml")
    options = {
        "node-files": "world.nod.xml",
        "edge-files": "world.edg.xml",
        "output-file": "world.net.xml",
        "precision": "4",
        "offset.disable-normalization": "true",
        "no-turnarounds": "true",
        "roundabouts.guess": "true",
        "crossings.guess": "true",
        "walkingareas": "true",
        "default.crossing-width": f"{rng.uniform(2.8, 4.0):.2f}",
        "junctions.corner-detail": "8",
        "junctions.internal-link-detail": "20",
        "junctions.limit-turn-speed": "3.0",
        "tls.cycle.time": str(rng.integers(50, 90)),
        "tls.layout": str(rng.choice(["opposites", "incoming"])),
        "tls.allred.time": "2",
        "tls.default-type": str(rng.choice(["static", "actuated"])),
        "no-warnings": "true",
    }
    run_tool("netconvert", [item for name, value in options.items() for item in (f"--{name}", value)], scratch)
    return scratch / "world.net.xml"
