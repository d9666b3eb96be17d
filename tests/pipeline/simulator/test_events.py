"""Collisions, the road's edge, red lights and goals against shapely, the realism metric and hand-made scenes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import shapely
import torch
from torch import Tensor

from data.road import edge_segments
from data.scene import AgentType, LightState, MapKind, Scene
from data.scenes_source import open_scenes
from pipeline.simulator.events import collisions, find_events, goals, off_road, red_lights, signed_edge_distance
from pipeline.simulator.step import Motion, State, agent_indices, reset
from pipeline.simulator.world import EDGE_CELL, World, build_world, stack_worlds
from submission.realism.road_edge import prepare_edges, signed_distance
from tests.data.test_road import random_lines
from tests.models.scenes import random_scene
from tests.pipeline.simulator.test_step import arcs
from tests.scenes import Mover, Signal, circle, hand_made


def world_of(scene: Scene) -> World:
    return build_world(scene, arcs(), 4)


def motion_of(world: World, pose: Tensor, start: Tensor | None = None, first_step: int = 1) -> Motion:
    """A decision with the poses [W, A, s, 3]; all that exist are present."""
    present = world.exists[..., None].expand(pose.shape[:3])
    return Motion(world.pose if start is None else start, pose, present, first_step)


@pytest.mark.parametrize("fused", [False, True])
def test_collisions_are_overlaps_of_shapely(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As looked for where operations are fused, and where they are not."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: fused)
    generator = torch.Generator().manual_seed(0)
    size = 0.5 + 5 * torch.rand(12, 3, generator=generator)
    movers = [Mover(x=float(i), size=tuple(row)) for i, row in enumerate(size.tolist())]
    world = world_of(hand_made(movers))
    asked = torch.arange(12) % 3 > 0
    for scale in (1.0, 0.7):
        for _ in range(40):
            pose = torch.rand(1, 12, 2, 3, generator=generator) * torch.tensor([40.0, 40.0, 6.0])
            boxes = np.array([[_box(p, s * scale) for p in rows] for rows, s in zip(pose[0], size)])
            areas = shapely.area(shapely.intersection(boxes[:, None], boxes[None]))
            hit = (areas > 0) & ~np.eye(12, dtype=bool)[..., None]
            # Of all agents, and of some: these may be hit by those that nobody asks about.
            for agents in (world.exists, world.exists & asked):
                found = collisions(world, motion_of(world, pose), scale, agent_indices(agents))[0]
                assert found.tolist() == (agents[0].numpy() & hit.any((1, 2))).tolist()


def _box(pose: Tensor, size: Tensor) -> shapely.Polygon:
    length, width = size[:2].tolist()
    box = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    box = shapely.affinity.rotate(box, float(pose[2]), origin=(0, 0), use_radians=True)
    return shapely.affinity.translate(box, float(pose[0]), float(pose[1]))


def test_levels_absence_and_padding_prevent_collisions() -> None:
    """An agent under a bridge, one that has left, one that does not exist."""
    world = world_of(hand_made([Mover(), Mover(z=6.0), Mover(x=1.0), Mover(x=1.5, z=1.0)]))
    pose = world.pose[:, :, None].expand(-1, -1, 2, -1)
    motion = motion_of(world, pose)
    assert collisions(world, motion, 1.0, agent_indices(world.exists)).tolist() == [[True, False, True, True]]
    gone = dataclasses.replace(motion, present=motion.present & torch.tensor([True, True, True, False])[:, None])
    assert collisions(world, gone, 1.0, agent_indices(world.exists)).tolist() == [[True, False, True, False]]
    late = dataclasses.replace(motion, present=torch.tensor([[[1, 0], [1, 1], [0, 1], [0, 0]]]).bool())
    assert not collisions(world, late, 1.0, agent_indices(world.exists)).any()


@pytest.mark.parametrize("seed", range(3))
def test_edge_distance_is_the_realism_metrics(seed: int) -> None:
    lines = [(MapKind.ROAD_EDGE, line) for line in random_lines(seed)]
    scene = hand_made([Mover(x=-30, y=-30), Mover(x=30, y=30, z=6.0), Mover(x=5, y=-5, z=2.5)], lines)
    compare_with_metric(scene, 3000, seed, least_agreement=0.995)


def compare_with_metric(scene: Scene, count: int, seed: int, least_agreement: float) -> None:
    world = world_of(scene)
    generator = torch.Generator().manual_seed(seed)
    agents = torch.randint(world.types.shape[1], (count,), generator=generator)
    spread = 12.0 * torch.randn(count, 1, 2, generator=generator)
    # Within the grid, of whose border the agents are 40 m away.
    point = world.pose[0, agents, None, :2] + spread.clamp(-39.0, 39.0)
    bottom = (world.height - world.size[..., 2] / 2)[0, agents]
    near = _lists(world, point[:, 0])
    every = torch.arange(len(world.edges.kind)).expand(count, 1, -1)
    mine = signed_edge_distance(world.edges, point, bottom, every)[:, 0]
    # The lists leave out what the side does not need, so that distances may be others; the side is the same.
    side = signed_edge_distance(world.edges, point, bottom, near)[:, 0].sign()
    assert float((side == mine.sign())[mine.abs() > 1e-4].double().mean()) == 1.0
    places_ = torch.cat((point[:, 0] + world.origin[0], bottom[:, None]), -1)
    expected = signed_distance(places_, prepare_edges(scene.map, bug_compatible=False))
    # Simplification may exchange edges that are about equally near once heights are weighted.
    error = (mine.abs() - expected.abs()).abs()
    assert float((error < 0.08).double().mean()) >= 0.99
    assert float(error.max()) < 0.6
    # Where the metric's points are within the tolerance of an edge, either side may be found.
    clear = expected.abs() > 0.08
    agree = (mine.sign() == expected.sign())[clear].double().mean()
    assert float(agree) >= least_agreement
    assert 0.02 < float((expected[clear] > 0).double().mean()) < 0.98


@pytest.mark.parametrize(
    ("seed", "beyond", "height"),
    [(4, (75.84697, 11.884836), 5.25), (10, (-38.469147, -81.619171), -0.75)],
)
def test_lists_tell_the_side_within_the_grid(seed: int, beyond: tuple[float, float], height: float) -> None:
    """Against all edges; 7 m and 13 m beyond the border two cases in a million were found where they do not."""
    lines = [(MapKind.ROAD_EDGE, line) for line in random_lines(seed)]
    world = world_of(hand_made([Mover(x=-30, y=-30), Mover(x=30, y=30, z=6.0), Mover(x=5, y=-5, z=2.5)], lines))
    low, cells = world.edge_grid.low[0], world.edge_grid.shape[0]
    share = torch.rand(5000, 2, generator=torch.Generator().manual_seed(seed))
    # Corners and sides of the grid, too.
    share[:400] = share[:400].round()
    share[400:800, seed % 2] = share[400:800, seed % 2].round()
    bottom = (world.height - world.size[..., 2] / 2)[0]
    heights = torch.cat((bottom[torch.arange(5000) % 3], torch.tensor([height])))
    point = torch.cat((low + share * cells * EDGE_CELL, torch.tensor([beyond])))
    every = torch.arange(len(world.edges.kind))
    listed = signed_edge_distance(world.edges, point[:, None], heights, _lists(world, point))[:, 0]
    whole = signed_edge_distance(world.edges, point[:, None], heights, every.expand(5001, 1, -1))[:, 0]
    clear = whole[:-1].abs() > 1e-4
    assert torch.equal(listed[:-1][clear].sign(), whole[:-1][clear].sign())
    assert not bool(((point[-1] >= low) & (point[-1] <= low + cells * EDGE_CELL)).all())
    assert float(listed[-1]) < 0 < float(whole[-1]), "the nearest edge is not in the list of the nearest cell"


def _lists(world: World, point: Tensor) -> Tensor:
    return world.edge_grid.near(torch.zeros(1, dtype=torch.int64), point.unsqueeze(0), EDGE_CELL)[0].unsqueeze(1)


def test_edge_distance_on_real_scenes(womd) -> None:
    for seed, scene in enumerate(itertools.islice(open_scenes(womd, "validation"), 3)):
        compare_with_metric(scene, 3000, seed, least_agreement=0.999)


def drive(world: World, pose: Tensor) -> Tensor:
    """[A] whether agents standing at poses [A, 3] are off the road."""
    motion = motion_of(world, pose[None, :, None].expand(-1, -1, 2, -1))
    return off_road(world, motion, 1.0, agent_indices(world.exists & (world.types == 0)))[0]


def test_corners_decide_who_is_off_a_straight_road() -> None:
    """Road between y = -4 and y = 4; boxes are 4 m by 2 m."""
    edges = [
        (MapKind.ROAD_EDGE, [(-60.0, -4.0), (60.0, -4.0)]),
        (MapKind.ROAD_EDGE, [(60.0, 4.0), (-60.0, 4.0)]),
    ]
    kinds = [AgentType.VEHICLE] * 5 + [AgentType.PEDESTRIAN]
    world = world_of(hand_made([Mover(x=6.0 * i, kind=kind) for i, kind in enumerate(kinds)], edges))
    shift = world.origin[0]
    places_ = [
        (0.0, 0.0, 0.0),
        (5.0, 2.9, 0.0),
        (9.0, 3.1, 0.0),
        (0.0, 2.5, math.pi / 2),
        (3.0, -9.0, 1.0),
        (3, 9, 0),
    ]
    pose = torch.tensor(places_) - torch.cat((shift, torch.zeros(1)))
    # The last one is a pedestrian, who may be there.
    assert drive(world, pose).tolist() == [False, False, True, True, True, False]


def test_inside_a_closed_edge_is_road_and_an_island_is_not() -> None:
    ring = (MapKind.ROAD_EDGE, circle(30.0, 80))
    island = (MapKind.ROAD_EDGE, circle(8.0, 40)[::-1])
    world = world_of(hand_made([Mover(x=15.0), Mover(x=-15.0), Mover(y=15.0), Mover(y=-15.0)], [ring, island]))
    pose = torch.tensor([[15.0, 0.0, 0.0], [29.5, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 9.0, math.pi / 2]])
    pose[:, :2] -= world.origin[0]
    assert drive(world, pose).tolist() == [False, True, True, True]


def test_without_edges_nobody_is_off_the_road() -> None:
    world = world_of(hand_made([Mover(), Mover(x=9.0)]))
    assert not drive(world, world.pose[0]).any()


def test_the_other_level_does_not_matter() -> None:
    """A bridge 6 m above a road at right angles; each agent is on its own road."""
    ground = [[(-60.0, -4.0, 0.0), (60.0, -4.0, 0.0)], [(60.0, 4.0, 0.0), (-60.0, 4.0, 0.0)]]
    bridge = [[(4.0, -60.0, 6.0), (4.0, 60.0, 6.0)], [(-4.0, 60.0, 6.0), (-4.0, -60.0, 6.0)]]
    edges = [(MapKind.ROAD_EDGE, line) for line in ground + bridge]
    low, high = Mover(x=6.0, z=0.75), Mover(y=6.0, z=6.75, heading=math.pi / 2)
    world = world_of(hand_made([low, high], edges))
    assert drive(world, world.pose[0]).tolist() == [False, False]
    exchanged = world.pose[0].flip(0)
    assert drive(world, exchanged).tolist() == [True, True]


def test_who_is_tall_is_on_the_road_that_it_stands_on() -> None:
    """A box of 12 m under a bridge of 6 m: its middle is as high as the bridge, whose edges are not its own."""
    ground = [[(-60.0, -4.0, 0.0), (60.0, -4.0, 0.0)], [(60.0, 4.0, 0.0), (-60.0, 4.0, 0.0)]]
    bridge = [[(4.0, -60.0, 6.0), (4.0, 60.0, 6.0)], [(-4.0, 60.0, 6.0), (-4.0, -60.0, 6.0)]]
    edges = [(MapKind.ROAD_EDGE, line) for line in ground + bridge]
    tall, flat = (Mover(x=6.0, z=6.0, size=(4.0, 2.0, height)) for height in (12.0, 0.2))
    world = world_of(hand_made([tall, flat], edges))
    assert drive(world, world.pose[0]).tolist() == [False, True]


RED, GREEN = LightState.STOP, LightState.GO
LANE = (MapKind.LANE, [(float(x), 0.0) for x in range(-30, 31, 3)])


def crossing(
    mover: Mover, states: Sequence[LightState | None], to: tuple[float, float, float], first_step: int = 1
) -> bool:
    """Whether an agent that gets from where it is to a place in one step runs the light at x = 0."""
    world = world_of(hand_made([mover, Mover(x=60.0)], [LANE], [Signal(0, (0.0, 0.0), states)]))
    end = torch.tensor(to) - torch.cat((world.origin[0], torch.zeros(1)))
    pose = world.pose[:, :, None].repeat(1, 1, 2, 1)
    pose[0, 0] = end
    return bool(red_lights(world, motion_of(world, pose, first_step=first_step))[0, 0])


@pytest.mark.parametrize(
    ("mover", "to", "ran"),
    [
        (Mover(x=-1.0), (1.0, 0.0, 0.0), True),
        (Mover(x=-1.0), (-0.1, 0.0, 0.0), False),  # stops before it
        (Mover(x=1.0), (2.0, 0.0, 0.0), False),  # was past it
        (Mover(x=1.0, heading=math.pi), (-1.0, 0.0, math.pi), False),  # the other way
        (Mover(x=-1.0, y=3.5), (1.0, 3.5, 0.0), False),  # another lane
        (Mover(x=-1.0, heading=math.pi / 2), (1.0, 0.0, math.pi / 2), False),  # crosswise
        (Mover(x=-1.0, kind=AgentType.PEDESTRIAN), (1.0, 0.0, 0.0), False),
    ],
)
def test_who_runs_a_red_light(mover: Mover, to: tuple[float, float, float], ran: bool) -> None:
    assert crossing(mover, [RED] * 91, to) == ran
    assert not crossing(mover, [GREEN] * 91, to)
    assert not crossing(mover, [None] * 91, to)


@pytest.mark.parametrize(("aside", "ran"), [(-1.99, True), (1.99, True), (2.0, False), (-2.0, False)])
def test_a_stop_point_reaches_less_than_two_metres_to_the_sides(aside: float, ran: bool) -> None:
    assert crossing(Mover(x=-1.0, y=aside), [RED] * 91, (1.0, aside, 0.0)) == ran


def test_lights_that_cannot_be_placed_hide_no_others() -> None:
    """Of no lane, never observed, on a lane of one point; between and before them one that is."""
    short = (MapKind.LANE, [(5.0, 5.0)])
    signals = [
        Signal(9, (0.0, 0.0), [RED] * 91),
        Signal(0, (0.0, 0.0), [None] * 91),
        Signal(0, (3.0, 0.0), [RED] * 91),
        Signal(1, (5.0, 5.0), [RED] * 91),
        Signal(0, (6.0, 0.0), [RED] * 91),
    ]
    world = world_of(hand_made([Mover(x=-1.0)], [LANE, short], signals))
    assert world.light_valid[0, :5].tolist() == [False, False, True, False, True]
    assert (world.stop_line[0, [2, 4], :2] + world.origin[0]).tolist() == [[3.0, 0.0], [6.0, 0.0]]


def test_the_light_counts_at_the_moment_of_crossing() -> None:
    changing = [GREEN] * 30 + [LightState.ARROW_STOP] * 61
    mover, to = Mover(x=-1.0), (1.0, 0.0, 0.0)
    # Step 19 after the current one is step 29 of the scene.
    assert not crossing(mover, changing, to, first_step=19)
    assert crossing(mover, changing, to, first_step=20)


@pytest.mark.parametrize(("sub_step", "ran"), [(0, False), (1, True)])
def test_each_step_of_a_decision_meets_its_own_light(sub_step: int, ran: bool) -> None:
    """The light turns red between the two steps of a decision: 19 and 20 after the current one."""
    states = [GREEN] * 30 + [RED] * 61
    world = world_of(hand_made([Mover(x=-1.0), Mover(x=60.0)], [LANE], [Signal(0, (0.0, 0.0), states)]))
    pose = world.pose[:, :, None].repeat(1, 1, 2, 1)
    pose[0, 0, sub_step:, 0] += 2.0
    assert bool(red_lights(world, motion_of(world, pose, first_step=19))[0, 0]) == ran


def test_goal_is_reached_once_and_only_by_those_who_have_one() -> None:
    scene = hand_made([Mover(speed=5.0), Mover(x=50.0), Mover(x=80.0, speed=1.0)])
    world = world_of(scene)
    assert world.moves.tolist() == [[True, False, True]]
    torch.testing.assert_close(world.goal[0, :, 0] + world.origin[0, 0], torch.tensor([40.0, 50.0, 88.0]))
    state = reset(world, torch.zeros_like(world.exists))

    def reached(pose: Tensor, before: State = state) -> list[bool]:
        return goals(world, before, motion_of(world, pose)).tolist()[0]

    still = world.pose[:, :, None].repeat(1, 1, 2, 1)
    assert reached(still) == [False, False, False]
    near = torch.cat((world.goal + torch.tensor([1.9, 0.0]), world.pose[..., 2:]), -1).unsqueeze(2)
    assert reached(torch.cat((still, near), 2)) == [True, False, True]
    again = dataclasses.replace(state, goal_reached=torch.tensor([[True, False, False]]))
    assert reached(near, again) == [False, False, True]
    beside = near + torch.tensor([0.2, 0.0, 0.0])
    assert reached(beside) == [False, False, False]
    # Who is fast passes it within a decision, and who is away does not reach it.
    assert reached(torch.cat((near, near + torch.tensor([5.0, 0.0, 0.0])), 2)) == [True, False, True]
    gone = dataclasses.replace(motion_of(world, near), present=torch.zeros(1, 3, 1, dtype=torch.bool))
    assert not goals(world, state, gone).any()


def test_padded_agents_have_no_events(vocabulary) -> None:
    world = build_world(random_scene(0), vocabulary, 4)
    world = dataclasses.replace(world, exists=torch.zeros_like(world.exists), moves=torch.zeros_like(world.moves))
    state = reset(world, world.exists)
    motion = motion_of(world, world.pose[:, :, None].expand(-1, -1, 2, -1))
    events = find_events(world, state, motion, 1.0, agent_indices(world.exists))
    assert not any(flag.any() for flag in vars(events).values())


def test_hills_keep_their_edges() -> None:
    """A road that climbs 20 m: every agent finds the edge beside it, whatever the others' heights."""
    edges = [
        (MapKind.ROAD_EDGE, [(2.0 * i, -4.0, 0.4 * i) for i in range(51)]),
        (MapKind.ROAD_EDGE, [(2.0 * i, 4.0, 0.4 * i) for i in range(50, -1, -1)]),
    ]
    movers = [Mover(x=float(x), z=0.2 * x + 0.75, speed=3.0) for x in range(5, 96, 10)]
    world = world_of(hand_made(movers, edges))
    assert len(edge_segments(hand_made(movers, edges), world.origin[0]).kind) == 2
    point = world.pose[0, :, None, :2] + torch.tensor([0.0, 3.0])
    bottom = (world.height - world.size[..., 2] / 2)[0]
    every = torch.arange(len(world.edges.kind)).expand(len(movers), 1, -1)
    distance = signed_edge_distance(world.edges, point, bottom, every)
    listed = signed_edge_distance(world.edges, point, bottom, _lists(world, point[:, 0]))
    assert torch.equal(listed.sign(), distance.sign())
    torch.testing.assert_close(distance, torch.full_like(distance, -1.0), atol=1e-3, rtol=0)


def test_who_is_off_the_road_by_shapely() -> None:
    """10,000 boxes on and around a ring with an island, by corners in the polygon."""
    outer, inner = circle(30.0, 80), circle(8.0, 40)
    edges = [(MapKind.ROAD_EDGE, outer), (MapKind.ROAD_EDGE, inner[::-1])]
    movers = [
        Mover(x=15.0),
        Mover(x=-15.0),
        Mover(y=15.0, size=(9.0, 2.6, 3.0)),
        Mover(y=-15.0, size=(2.0, 1.0, 1.5)),
    ]
    world = world_of(hand_made(movers, edges))
    road = shapely.Polygon([p[:2] for p in outer], [[p[:2] for p in inner]])
    generator = torch.Generator().manual_seed(2)
    count = 2500
    pose = torch.rand(count, 4, 3, generator=generator) * torch.tensor([76.0, 76.0, 6.3]) - torch.tensor(
        [38.0, 38, 0]
    )
    worlds = stack_worlds([world] * count)
    local = pose - torch.cat((world.origin[0], torch.zeros(1)))
    found = off_road(worlds, motion_of(worlds, local[:, :, None], local), 1.0, agent_indices(worlds.exists))
    corners = np.array(
        [
            shapely.get_coordinates(_box(place, size).exterior)[:4]
            for row in pose
            for place, size in zip(row, world.size[0])
        ]
    ).reshape(count, 4, 4, 2)
    outside = ~shapely.contains_xy(road, corners[..., 0], corners[..., 1])
    # Lines are simplified by some centimetres.
    near = shapely.distance(road.boundary, shapely.points(corners)) < 0.05
    clear = torch.from_numpy(~near.any(-1))
    assert int(clear.sum()) > 9700
    assert torch.equal(found[clear], torch.from_numpy(outside.any(-1))[clear])
    assert 0.2 < float(found.double().mean()) < 0.8


STRAIGHT = [
    (MapKind.ROAD_EDGE, [(-60.0, -4.0), (60.0, -4.0)]),
    (MapKind.ROAD_EDGE, [(60.0, 4.0), (-60.0, 4.0)]),
]


def test_boxes_are_shrunk_for_the_road_too_and_the_absent_are_not_off_it() -> None:
    """A corner 10 cm behind the edge, which a box of 0.7 times the size does not have."""
    world = world_of(hand_made([Mover(), Mover(x=20.0)], STRAIGHT))
    pose = world.pose[:, :, None].repeat(1, 1, 2, 1)
    pose[0, 0, :, 1] = 3.1 - world.origin[0, 1]
    motion, agent_index = motion_of(world, pose), agent_indices(world.exists)
    assert off_road(world, motion, 1.0, agent_index).tolist() == [[True, False]]
    assert off_road(world, motion, 0.7, agent_index).tolist() == [[False, False]]
    gone = dataclasses.replace(motion, present=motion.present & torch.tensor([[[False], [True]]]))
    assert not off_road(world, gone, 1.0, agent_index).any()


def test_levels_are_told_by_what_boxes_stand_on() -> None:
    """A crane of 10 m beside a car, on one ground; a low box on a deck 4.5 m above the ground of a lorry of 8 m."""
    world = world_of(hand_made([Mover(z=5.0, size=(4.0, 2.0, 10.0)), Mover(x=1.0, z=0.75)]))
    still = motion_of(world, world.pose[:, :, None])
    assert collisions(world, still, 1.0, agent_indices(world.exists)).all()
    world = world_of(hand_made([Mover(z=4.0, size=(4.0, 2.0, 8.0)), Mover(x=1.0, z=5.0, size=(4.0, 2.0, 1.0))]))
    still = motion_of(world, world.pose[:, :, None])
    assert not collisions(world, still, 1.0, agent_indices(world.exists)).any()
    # The crane is on the road under the bridge, though its middle is as high as that.
    ground = [[(-60.0, -4.0, 0.0), (60.0, -4.0, 0.0)], [(60.0, 4.0, 0.0), (-60.0, 4.0, 0.0)]]
    bridge = [[(4.0, -60.0, 6.0), (4.0, 60.0, 6.0)], [(-4.0, 60.0, 6.0), (-4.0, -60.0, 6.0)]]
    crane = Mover(x=6.0, z=5.0, size=(4.0, 2.0, 10.0))
    world = world_of(hand_made([crane], [(MapKind.ROAD_EDGE, line) for line in ground + bridge]))
    assert drive(world, world.pose[0]).tolist() == [False]


def test_the_absent_run_no_lights() -> None:
    world = world_of(hand_made([Mover(x=-1.0), Mover(x=60.0)], [LANE], [Signal(0, (0.0, 0.0), [RED] * 91)]))
    pose = world.pose[:, :, None].repeat(1, 1, 2, 1)
    pose[0, 0, :, 0] += 2.0
    motion = motion_of(world, pose)
    assert red_lights(world, motion).tolist() == [[True, False]]
    assert not red_lights(world, dataclasses.replace(motion, present=torch.zeros_like(motion.present))).any()


def test_lanes_that_bend_have_the_heading_of_the_stop_line() -> None:
    """The light stands behind a left turn: who comes through it from the south passes it, who crosses does not."""
    bent = (MapKind.LANE, [(float(x), 0.0) for x in range(-30, 1, 3)] + [(0.0, float(y)) for y in range(3, 31, 3)])
    movers = [Mover(y=19.0, heading=math.pi / 2), Mover(x=-1.0, y=20.0)]
    world = world_of(hand_made(movers, [bent], [Signal(0, (0.0, 20.0), [RED] * 91)]))
    assert world.stop_line[0, 0, 2] == pytest.approx(math.pi / 2)
    pose = world.pose[:, :, None].clone()
    pose[0, 0, :, 1] += 2.0
    pose[0, 1, :, 0] += 2.0
    assert red_lights(world, motion_of(world, pose)).tolist() == [[True, False]]


def test_the_road_is_known_where_the_fast_get_to() -> None:
    """At 25 m/s an agent is 200 m on after 8 s, on a road that is 40 m wide there and 8 m where it starts."""
    sides = ((1, [(-60.0, 4.0), (120.0, 4.0)]), (1, [(121.0, 20.0), (400.0, 20.0)]))
    edges = [(MapKind.ROAD_EDGE, line[::-1]) for _, line in sides]
    edges += [(MapKind.ROAD_EDGE, [(x, -y) for x, y in line]) for _, line in sides]
    world = world_of(hand_made([Mover(speed=25.0)], edges))
    there = torch.tensor([[200.0, 15.0, 0.0]]) - torch.cat((world.origin[0], torch.zeros(1)))
    assert drive(world, there).tolist() == [False]
    assert drive(world, there + torch.tensor([0.0, 6.0, 0.0])).tolist() == [True]


def test_a_light_that_is_not_observed_is_not_red() -> None:
    """Whatever stands in the place of its state."""
    scene = hand_made([Mover()], [LANE], [Signal(0, (0.0, 0.0), [RED] * 91)])
    assert world_of(scene).red[0, 0].all()
    observed = scene.lights.observed.clone()
    observed[:, 40:] = False
    scene = dataclasses.replace(scene, lights=dataclasses.replace(scene.lights, observed=observed))
    assert world_of(scene).red[0, 0].nonzero().flatten().tolist() == list(range(30))
