"""What agents see: values on hand-made scenes, the same from every side, nothing of padding or of the future."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from data.errors import UserError
from data.scene import AgentType, LightState, MapKind, Scene
from models.reference.inputs import select_agents
from pipeline.selfplay.rollout import act
from pipeline.simulator.observation import Observation, ObservationConfig, feature_sizes, observe
from pipeline.simulator.step import State, agent_indices, reset, step
from pipeline.simulator.world import World, build_world, stack_worlds
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW
from tests.pipeline.simulator.test_step import arcs
from tests.scenes import Mover, Signal, hand_made
from tests.transformations import move

PAPER = ObservationConfig(
    neighbours=63,
    road_segments=120,
    speed_scale=100.0,
    goal_scale=1000.0,
    show_type=False,
    show_motion=False,
    show_velocity=False,
    show_light=False,
)


def shown(world: World) -> Tensor:
    return torch.zeros_like(world.exists)


def look(world: World, state: State, config: ObservationConfig = VIEW) -> Observation:
    return observe(world, state, agent_indices(world.exists), config)


def after(world: World, vocabulary, count: int, tokens: Tensor) -> State:
    state = reset(world, shown(world))
    for _ in range(count):
        state, _ = step(world, state, tokens, world.exists, vocabulary)
    return state


def test_features_of_a_hand_made_scene() -> None:
    """North-bound, at 10 m/s; another one 20 m ahead, 3 m to the left, coming towards it; an edge to the right."""
    ego = Mover(x=1000.0, y=2000.0, heading=math.pi / 2, speed=10.0)
    other = Mover(x=997.0, y=2020.0, heading=-math.pi / 2, speed=5.0, size=(8.0, 2.5, 3.0), kind=AgentType.CYCLIST)
    far = Mover(x=1000.0, y=2060.0)
    wall = (MapKind.ROAD_EDGE, [(1006.0, 1996.0, 2.0), (1006.0, 2004.0, 2.0)])
    world = build_world(hand_made([ego, other, far], [wall]), arcs(), 4)
    view = ObservationConfig(neighbours=3, road_segments=4)
    assert feature_sizes(view) == (17, 11, 13)
    seen = look(world, reset(world, shown(world)), view)
    # Speed, length, width; the goal is 80 m ahead; no collision; a vehicle; the last token; velocity; no light.
    goal = [0.5, 4 / 30, 2 / 15, 0.8, 0.0, 0.0]
    torch.testing.assert_close(seen.ego[0, :6], torch.tensor(goal), atol=1e-4, rtol=0)
    assert seen.ego[0, 6:9].tolist() == [1.0, 0.0, 0.0]
    torch.testing.assert_close(seen.ego[0, 9:12], torch.tensor([2.0 / 4, 0.0, 0.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(seen.ego[0, 12:], torch.tensor([0.5, 0, 0, 0, 0]), atol=1e-4, rtol=0)
    assert seen.neighbour_seen[0].tolist() == [True, False, False]
    beside = [0.25, 20 / 50, 3 / 50, 1.0, 8 / 30, 2.5 / 15, 0, 0, 1, -5 / 20, 0]
    found = seen.neighbour[0, 0].clone()
    found[3] = found[3].abs()  # half a turn has either sign
    torch.testing.assert_close(found, torch.tensor(beside), atol=1e-4, rtol=0)
    assert seen.road_seen[0].tolist() == [True, False, False, False]
    edge = [0.0, -6 / 50, 0.8, 1.0, 0.0, 0.2, 0, 0, 1, 0, 0, 0, 0]
    torch.testing.assert_close(seen.road[0, 0], torch.tensor(edge), atol=1e-4, rtol=0)
    assert (seen.neighbour[0, 1:] == 0).all()
    assert (seen.road[0, 1:] == 0).all()


def test_the_papers_sizes() -> None:
    assert feature_sizes(PAPER) == (6, 6, 13)
    world = build_world(random_scene(0), arcs(), PAPER.road_segments)
    seen = look(world, reset(world, shown(world)), PAPER)
    assert seen.ego.shape[1:] == (6,)
    assert seen.neighbour.shape[1:] == (63, 6)
    assert seen.road.shape[1:] == (120, 13)
    assert float(seen.ego.abs().max()) <= 1
    assert float(seen.neighbour.abs().max()) <= 1


def test_a_hidden_goal_is_zero() -> None:
    world = build_world(hand_made([Mover(speed=9.0)]), arcs(), 4)
    assert float(look(world, reset(world, shown(world))).ego[0, 3]) > 0.5
    assert (look(world, reset(world, ~shown(world))).ego[0, 3:5] == 0).all()


@pytest.mark.parametrize(
    ("angle", "shift"), [(0.0, (300.0, -70.0)), (0.7, (0.0, 0.0)), (math.pi / 2, (9.0, 1.0)), (-2.5, (-40.0, 3.0))]
)
@pytest.mark.parametrize("origin", [(900.0, -400.0), (7000.0, -9000.0)])
def test_the_same_from_every_side(policy, vocabulary, angle, shift, origin) -> None:
    scene = random_scene(2, origin=origin)
    worlds = [build_world(s, vocabulary, VIEW.road_segments) for s in (scene, move(scene, angle, shift))]
    tokens = torch.randint(vocabulary.size, worlds[0].types.shape, generator=torch.Generator().manual_seed(0))
    # Thousands of metres away float32 leaves a millimetre.
    tolerance = 1e-4 if origin[0] < 1000 else 1e-3
    for count in (0, 3, 12):
        first, second = (look(world, after(world, vocabulary, count, tokens)) for world in worlds)
        torch.testing.assert_close(first.ego, second.ego, atol=tolerance * 5, rtol=0)
        torch.testing.assert_close(first.neighbour, second.neighbour, atol=tolerance * 5, rtol=0)
        assert torch.equal(first.neighbour_seen, second.neighbour_seen)
        assert torch.equal(first.road_seen.sum(1), second.road_seen.sum(1))
        # The order of the road is nobody's business; what is made of it is.
        for one, two in zip(act(policy, first), act(policy, second)):
            torch.testing.assert_close(one, two, atol=tolerance * 50, rtol=0)


def test_the_nearest_road_is_seen(vocabulary) -> None:
    scene = random_scene(1)
    world = build_world(scene, vocabulary, VIEW.road_segments)
    tokens = torch.randint(vocabulary.size, world.types.shape, generator=torch.Generator().manual_seed(4))
    for count in (0, 7):
        state = after(world, vocabulary, count, tokens)
        seen = look(world, state)
        middle = world.road.middle[1:]
        distance = torch.cdist(state.pose[0, :, :2], middle).topk(VIEW.road_segments, largest=False).values
        found = (seen.road[..., :2] * VIEW.distance_scale).norm(dim=-1)
        expected = torch.where(distance <= VIEW.radius, distance, 0.0)
        torch.testing.assert_close(found.sort().values, expected.sort().values, atol=1e-3, rtol=0)


def test_the_order_of_agents_does_not_matter(policy, vocabulary) -> None:
    scene = random_scene(3)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    first, second = (build_world(s, vocabulary, VIEW.road_segments) for s in (scene, select_agents(scene, order)))
    logits, values = act(policy, look(first, reset(first, shown(first))))
    swapped, worth = act(policy, look(second, reset(second, shown(second))))
    torch.testing.assert_close(logits[order], swapped, atol=1e-4, rtol=0)
    torch.testing.assert_close(values[order], worth, atol=1e-4, rtol=0)


def garbage(world: World, value: float) -> World:
    """The same worlds with nonsense wherever nobody exists."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(world):
        tensor = getattr(world, field.name)
        if isinstance(tensor, Tensor) and tensor.shape[:2] == world.exists.shape and tensor.is_floating_point():
            keep = world.exists.view(*world.exists.shape, *(1,) * (tensor.dim() - 2))
            changes[field.name] = torch.where(keep, tensor, value)
    return dataclasses.replace(world, **changes)


@pytest.mark.parametrize("value", [3.0, -1e4, math.nan])
def test_padding_is_not_seen(vocabulary, value) -> None:
    scenes: list[Scene] = [random_scene(0), random_scene(1, agents=2), random_scene(2, agents=3)]
    worlds = [build_world(scene, vocabulary, VIEW.road_segments) for scene in scenes]
    batch = stack_worlds(worlds)
    state = reset(batch, shown(batch))
    dirty = garbage(batch, value)
    seen, other = look(batch, state), look(dirty, reset(dirty, shown(batch)))
    for name, tensor in vars(seen).items():
        assert torch.equal(tensor, getattr(other, name)), name
    row = 0
    for world in worlds:
        alone = look(world, reset(world, shown(world)))
        for name, tensor in vars(alone).items():
            # Vectorised functions round the last elements of a batch in another way.
            torch.testing.assert_close(getattr(seen, name)[row : row + len(tensor)], tensor, atol=1e-6, rtol=1e-6)
        row += len(alone.ego)


def test_agents_that_left_are_not_seen(vocabulary) -> None:
    world = build_world(hand_made([Mover(), Mover(x=8.0)]), arcs(), 4)
    state = reset(world, shown(world))
    gone = dataclasses.replace(state, present=torch.tensor([[True, False]]))
    assert look(world, state).neighbour_seen[0, 0]
    assert not look(world, gone).neighbour_seen[0].any()


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([LightState.STOP] * 91, [1.0, 0.6, 1.0]),
        ([LightState.GO] * 91, [1.0, 0.6, 0.0]),
        ([LightState.GO] * 5 + [LightState.ARROW_STOP] * 3 + [None] * 83, [1.0, 0.6, 1.0]),
        ([LightState.STOP] + [None] * 90, [1.0, 0.6, 1.0]),
        ([LightState.GO] * 11 + [LightState.STOP] * 80, [1.0, 0.6, 0.0]),
        ([None] * 11 + [LightState.STOP] * 80, [0.0, 0.0, 0.0]),
    ],
    ids=["red", "green", "last seen red", "seen only a second ago", "red later", "first seen later"],
)
def test_only_lights_known_by_now_are_seen(states, expected) -> None:
    lane = (MapKind.LANE, [(float(x), 0.0) for x in range(-30, 61, 3)])
    scene = hand_made([Mover(), Mover(y=9.0)], [lane], [Signal(0, (20.0, 0.0), states)])
    world = build_world(scene, arcs(), 4)
    ego = look(world, reset(world, shown(world))).ego
    torch.testing.assert_close(ego[0, -3:], torch.tensor(expected), atol=1e-4, rtol=0)
    assert (ego[1, -3:] == 0).all()


def test_history_of_a_hand_made_scene() -> None:
    """East-bound at 10 m/s, and one beside it: two decisions ago they were 4 m behind."""
    world = build_world(hand_made([Mover(speed=10.0), Mover(y=6.0, speed=10.0)]), arcs(), 4)
    view = ObservationConfig(neighbours=1, road_segments=4, history=7)
    plain = ObservationConfig(neighbours=1, road_segments=4)
    assert [a - b for a, b in zip(feature_sizes(view), feature_sizes(plain), strict=True)] == [28, 21, 0]
    state = reset(world, shown(world), view.history)
    seen = look(world, state, view)
    own, other = seen.ego[0, -28:].view(7, 4), seen.neighbour[0, 0, -21:].view(7, 3)
    # Before the logged second nothing is known.
    assert (own[:2] == 0).all()
    assert (other[:2] == 0).all()
    steps = torch.arange(5, 0, -1.0)
    expected = torch.stack((-2.0 * steps / 50, 0 * steps, 0 * steps, 1 + 0 * steps), dim=1)
    torch.testing.assert_close(own[2:], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(other[2:, 0], -2.0 * steps / 50, atol=1e-3, rtol=0)
    assert (other[2:, 2] == 1).all()
    # A decision later everything is one place further back.
    rest = torch.zeros_like(world.types)
    after_, _ = step(world, state, rest, world.exists, arcs())
    assert torch.equal(after_.past[:, :, -1], state.pose)
    assert torch.equal(after_.past[:, :, :-1], state.past[:, :, 1:])


def test_goals_beyond_the_scale_are_at_its_end() -> None:
    world = build_world(hand_made([Mover(heading=math.pi, speed=18.0)]), arcs(), 4)
    ahead = look(world, reset(world, shown(world)), ObservationConfig(neighbours=1, road_segments=4))
    assert ahead.ego[0, 3:5].tolist() == pytest.approx([1.0, 0.0], abs=1e-4)


def test_own_motion_and_collision_are_felt() -> None:
    """The last token's 2 m ahead, 0.3 m aside and 0.1 rad have scales of their own."""
    world = build_world(hand_made([Mover(speed=9.0)]), arcs(), 4)
    state = dataclasses.replace(
        reset(world, shown(world)), last_motion=torch.tensor([[[2.0, 0.3, 0.1]]]), collided=~shown(world)
    )
    ego = look(world, state).ego[0]
    assert float(ego[5]) == 1.0
    torch.testing.assert_close(ego[9:12], torch.tensor([0.5, 0.3, 0.4]))


@pytest.mark.parametrize(("beyond", "seen"), [(0.0, True), (0.01, False)])
def test_agents_and_road_are_seen_up_to_the_radius(beyond: float, seen: bool) -> None:
    """Agents by their centres, road by the middle of its segments; 50 m and half of them are exact in float32."""
    away = 50.0 + beyond
    for line in ([(-4.0, -away), (4.0, -away)], [(away, -4.0), (away, 4.0)]):
        world = build_world(hand_made([Mover(), Mover(x=away)], [(MapKind.ROAD_EDGE, line)]), arcs(), 4)
        found = look(world, reset(world, shown(world)))
        assert bool(found.neighbour_seen[0].any()) == seen
        assert bool(found.road_seen[0].any()) == seen


def test_the_nearest_light_ahead_in_the_own_lane_is_seen() -> None:
    """Of two ahead the nearer one, not one behind, beside, or of crossing traffic."""
    lanes = [(MapKind.LANE, [(float(x), y) for x in range(-30, 91, 3)]) for y in (0.0, 4.0)]
    across = (MapKind.LANE, [(12.0, float(y)) for y in range(-30, 31, 3)])
    red, green = [LightState.STOP] * 91, [LightState.GO] * 91

    def seen(*lights: tuple[int, tuple[float, float], list[LightState]]) -> list[float]:
        world = build_world(hand_made([Mover()], [*lanes, across], [Signal(*light) for light in lights]), arcs(), 4)
        return look(world, reset(world, shown(world))).ego[0, -3:].tolist()

    near, far = (0, (20.0, 0.0)), (0, (40.0, 0.0))
    assert seen((*near, green), (*far, red)) == pytest.approx([1.0, 0.6, 0.0])
    assert seen((*far, green), (*near, red)) == pytest.approx([1.0, 0.6, 1.0])
    for other in ((0, (-1.5, 0.0)), (1, (20.0, 4.0)), (2, (12.0, 0.5)), (0, (60.0, 0.0))):
        assert seen((*other, red)) == [0.0, 0.0, 0.0]
    assert seen((0, (-0.5, 0.0), red)) == pytest.approx([1.0, 1.0, 1.0]), "who stands over the line still sees it"


def test_road_that_rises_is_seen_at_its_middle() -> None:
    wall = (MapKind.ROAD_EDGE, [(-4.0, -6.0, 1.0), (4.0, -6.0, 2.0)])
    world = build_world(hand_made([Mover(z=0.5)], [wall]), arcs(), 4)
    road = look(world, reset(world, shown(world))).road[0, 0]
    torch.testing.assert_close(road[:6], torch.tensor([0.0, -6 / 50, 0.8, 1.0, 0.0, 0.1]), atol=1e-4, rtol=0)


def test_history_is_seen_from_the_present_pose() -> None:
    """One that turns left past one that turns left the other way round: places and turns by complex numbers."""
    world = build_world(hand_made([Mover(heading=3.1), Mover(x=9.0, y=2.0, heading=-1.0)]), arcs(), 4)
    view = ObservationConfig(neighbours=1, road_segments=4, history=2)
    state = reset(world, shown(world), 2)
    poses = [state.pose[0].double()]
    for _ in range(2):
        state, _ = step(world, state, torch.full_like(world.types, 2), world.exists, arcs())
        poses.append(state.pose[0].double())
    seen = look(world, state, view)
    here = [complex(float(p[0]), float(p[1])) for p in poses[2]]
    for agent in range(2):
        turned = math.e ** complex(0, -float(poses[2][agent, 2]))
        own, other = seen.ego[agent, -8:].view(2, 4), seen.neighbour[agent, 0, -6:].view(2, 3)
        for back in range(2):
            for agent_index, found in ((agent, own), (1 - agent, other)):
                was = complex(float(poses[back][agent_index, 0]), float(poses[back][agent_index, 1]))
                place = (was - here[agent_index]) * turned / 50
                assert found[back, :2].tolist() == pytest.approx([place.real, place.imag], abs=1e-4)
            assert float(own[back, 2]) == pytest.approx(-0.2 * (2 - back), abs=1e-4)
            assert (own[back, 3], other[back, 2]) == (1, 1)


def test_a_slanted_edge_has_the_direction_that_the_agent_sees() -> None:
    """North-bound; the edge to the right leads north-east, as far ahead as to the right."""
    ego = Mover(x=1000.0, y=2000.0, heading=math.pi / 2, speed=10.0)
    wall = (MapKind.ROAD_EDGE, [(1006.0, 1996.0, 2.0), (1010.0, 2000.0, 2.0)])
    world = build_world(hand_made([ego], [wall]), arcs(), 4)
    seen = look(world, reset(world, shown(world)), ObservationConfig(neighbours=3, road_segments=4))
    half = math.sqrt(0.5)
    expected = torch.tensor([-2 / 50, -8 / 50, math.sqrt(32) / 10, half, -half])
    torch.testing.assert_close(seen.road[0, 0, :5], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("speed", [0.0, 12.0, 40.0])
def test_further_road_is_seen_ahead(vocabulary, speed: float) -> None:
    """Half of the segments are the nearest to where an agent is, and half the nearest to where it will be."""
    view = ObservationConfig(neighbours=4, road_segments=12, ahead_segments=5, distance_scale=1.0)
    scene = random_scene(3)
    world = build_world(scene, vocabulary, view.listed_segments)
    state = reset(world, shown(world))
    heading = state.pose[..., 2]
    direction = torch.stack((torch.cos(heading), torch.sin(heading)), dim=-1)
    seen = look(world, dataclasses.replace(state, velocity=speed * direction), view)
    middle = world.road.middle[1:]
    reach = min(max(10.0, 1.5 * speed), 40.0)
    for row, (pose, forward) in enumerate(zip(state.pose[0], direction[0], strict=True)):
        distance = (middle - pose[:2]).norm(dim=-1)
        near = distance.argsort()[:7]
        ahead = (middle - pose[:2] - reach * forward).norm(dim=-1)
        ahead[near] = torch.inf
        chosen = torch.cat((near, ahead.argsort()[:5]))
        expected = distance[chosen][distance[chosen] <= view.radius].sort().values
        actual = seen.road[row][seen.road_seen[row]][:, :2].norm(dim=-1).sort().values
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-4)


def test_the_road_ahead_leaves_some_for_where_an_agent_is() -> None:
    with pytest.raises(UserError, match=r"ahead_segments is 48; it must be at least 0 and less than .*, 48"):
        ObservationConfig(ahead_segments=48)


def test_whether_a_goal_is_shown_is_seen() -> None:
    """A goal that is hidden, one that is reached, and none at all are not."""
    world = build_world(hand_made([Mover(speed=5.0), Mover(x=20.0)]), arcs(), 4)
    state, view = reset(world, shown(world)), ObservationConfig(road_segments=4, show_goal_known=True)
    hidden = dataclasses.replace(state, goal_hidden=torch.ones_like(state.goal_hidden))
    reached = dataclasses.replace(state, goal_reached=torch.ones_like(state.goal_reached))
    assert feature_sizes(view)[0] == feature_sizes(ObservationConfig())[0] + 1
    assert [look(world, one, view).ego[:, 6].tolist() for one in (state, hidden, reached)] == [
        [1.0, 0.0],
        [0.0, 0.0],
        [0.0, 0.0],
    ]


def test_critics_see_time_goal_and_log() -> None:
    """An agent that stands, facing left, while its log drives on to the right."""
    world = build_world(hand_made([Mover(speed=5.0)]), arcs(), 4)
    state = reset(world, ~shown(world))
    pose = state.pose.clone()
    pose[..., 2] = math.pi
    later = dataclasses.replace(state, pose=pose, step=20)
    view = ObservationConfig(road_segments=4)
    torch.testing.assert_close(look(world, later, view).beyond, torch.tensor([[0.75, 1.0, -0.4, 0.0, -0.5, 0.0]]))
    reached = dataclasses.replace(later, goal_reached=torch.ones_like(state.goal_reached), step=80)
    torch.testing.assert_close(look(world, reached, view).beyond[0, :2], torch.tensor([0.0, 0.0]))
    # The log is never farther away than 20 m to either side.
    torch.testing.assert_close(look(world, reached, view).beyond[0, 4:], torch.tensor([-1.0, 0.0]))
