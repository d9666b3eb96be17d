"""Size of the policy, what its pooling sees, its heads, and its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.vocabulary import Vocabulary
from models.policy import BEYOND, Policy, PolicyConfig, load_policy, save_policy
from models.reference.checkpoint import save_reference
from tests.models.reference.conftest import make_model

SIZES = (6, 6, 13)


def ends(actions: int) -> torch.Tensor:
    return torch.randn(3, actions, 3, generator=torch.Generator().manual_seed(2))


def make(config: PolicyConfig, actions: int = 7, sizes: tuple[int, int, int] = SIZES) -> Policy:
    torch.manual_seed(0)
    policy = Policy(config, sizes, ends(actions)).eval()
    with torch.no_grad():
        policy.actor.weight.normal_()
        policy.actor.bias.normal_()
        # They begin at zero, where one forgotten or added twice is not seen.
        for name, parameter in policy.named_parameters():
            if name.endswith(".4.bias"):
                parameter.normal_()
    return policy


def make_for(vocabulary: Vocabulary, config: PolicyConfig) -> Policy:
    return Policy(config, SIZES, vocabulary.ends).eval()


def inputs(count: int = 5, sizes: tuple[int, int, int] = SIZES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "ego": torch.randn(count, sizes[0], generator=generator),
        "neighbour": torch.randn(count, 9, sizes[1], generator=generator),
        "neighbour_seen": torch.rand(count, 9, generator=generator) < 0.6,
        "road": torch.randn(count, 12, sizes[2], generator=generator),
        "road_seen": torch.rand(count, 12, generator=generator) < 0.6,
        "agent_type": torch.arange(count) % 3,
        "motion": torch.randn(count, 3, generator=generator),
    }


def test_the_papers_net_has_65289_parameters() -> None:
    policy = Policy(PolicyConfig(per_type=False, inertia=False), SIZES, ends(200))
    assert sum(parameter.numel() for parameter in policy.parameters()) == 65_289


def test_first_opinions_are_almost_even() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        logits, value = Policy(PolicyConfig(inertia=False), SIZES, ends(200)).eval()(**inputs())
    assert logits.shape == (5, 200)
    assert value.shape == (5,)
    assert float(logits.abs().max()) < 0.2


@pytest.mark.parametrize("gelu", [False, True])
def test_values_are_those_of_the_net_written_out(gelu: bool) -> None:
    """GPUDrive's block: linear, layer norm, tanh, linear; maximum over what is seen; two linear heads."""
    policy, seen = make(PolicyConfig(per_type=False, inertia=False, gelu=gelu)), inputs()

    def around(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.erf(x / 2**0.5)) if gelu else x

    weights = {name: tensor.double() for name, tensor in policy.state_dict().items()}

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        x = x.double() @ weights[f"{name}.0.weight"].T + weights[f"{name}.0.bias"]
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = (x * weights[f"{name}.1.weight"] + weights[f"{name}.1.bias"]).tanh()
        return x @ weights[f"{name}.4.weight"].T + weights[f"{name}.4.bias"]

    logits, value = policy(**seen)
    for row in range(5):
        parts = [block("ego", seen["ego"][row])]
        for name in ("neighbour", "road"):
            parts.append(block(name, seen[name][row][seen[f"{name}_seen"][row]]).amax(0))
        fused = around(around(torch.cat(parts)) @ weights["fuse.0.weight"].T + weights["fuse.0.bias"])
        expected = fused @ weights["actor.weight"].T + weights["actor.bias"]
        torch.testing.assert_close(logits[row].double(), expected, atol=1e-4, rtol=0)
        worth = fused @ weights["critic.weight"].T + weights["critic.bias"]
        torch.testing.assert_close(value[row : row + 1].double(), worth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_order_and_hidden_slots_do_not_matter_and_nothing_seen_is_zero(layers: int) -> None:
    policy, seen = make(PolicyConfig(row_layers=layers)), inputs()
    logits, value = policy(**seen)
    order = torch.randperm(9)
    turned = seen | {"neighbour": seen["neighbour"][:, order], "neighbour_seen": seen["neighbour_seen"][:, order]}
    torch.testing.assert_close(policy(**turned)[0], logits)
    dirty = seen | {
        name: torch.where(seen[f"{name}_seen"][..., None], seen[name], 1e3) for name in ("neighbour", "road")
    }
    torch.testing.assert_close(policy(**dirty)[0], logits, atol=0, rtol=0)
    blind = seen | {name: torch.zeros_like(seen[name]) for name in ("neighbour_seen", "road_seen")}
    logits, value = policy(**blind)
    fused = policy.fuse(torch.cat((policy.ego(seen["ego"]), torch.zeros(5, 128)), -1))
    torch.testing.assert_close(value, policy.critic(fused).squeeze(-1))
    logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)


def test_the_second_layer_may_follow_the_maximum() -> None:
    policy, seen = make(PolicyConfig(row_layers=1)), inputs()
    with torch.no_grad():
        hidden = policy.road[2](policy.road[1](policy.road[0](seen["road"])))
        largest = torch.stack([rows[there].amax(0) for rows, there in zip(hidden, seen["road_seen"], strict=True)])
        torch.testing.assert_close(policy.see_road(seen["road"], seen["road_seen"]), policy.road[4](largest))
    with pytest.raises(UserError, match=r"row_layers is 3; it must be 1 or 2"):
        PolicyConfig(row_layers=3)


def test_each_type_has_its_own_head() -> None:
    policy, seen = make(PolicyConfig(per_type=True)), inputs(6)
    logits, _ = policy(**seen)
    for kind in range(3):
        with torch.no_grad():
            changed = make(PolicyConfig(per_type=True))
            changed.actor.weight[kind * 7 : (kind + 1) * 7] += 1.0
        others = (changed(**seen)[0] != logits).any(-1)
        assert others.tolist() == [index % 3 == kind for index in range(6)]


def test_before_learning_inertia_prefers_the_token_that_goes_on() -> None:
    seen = inputs(6) | {"motion": ends(7)[torch.arange(6) % 3, torch.arange(6)]}
    torch.manual_seed(0)
    with torch.no_grad():
        logits, _ = Policy(PolicyConfig(), SIZES, ends(7)).eval()(**seen)
    assert logits.argmax(-1).tolist() == list(range(6))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_model(2).vocabulary


def test_checkpoint_round_trip(tmp_path: Path, vocabulary: Vocabulary) -> None:
    policy = make_for(vocabulary, PolicyConfig(embedding=8, hidden=16))
    path = tmp_path / "policy.ckpt"
    save_policy(path, policy, vocabulary, {"neighbours": 9})
    loaded, words, view = load_policy(path)
    assert loaded.config == policy.config
    assert view == {"neighbours": 9}
    assert not loaded.training
    assert torch.equal(words.poses, vocabulary.poses)
    for one, two in zip(loaded(**inputs()), policy(**inputs())):
        assert torch.equal(one, two)
    first = path.read_bytes()
    save_policy(path, policy, vocabulary, {"neighbours": 9})
    assert path.read_bytes() == first


def test_an_untrained_policy_is_named(
    tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, once; after a single small step of learning, or one number of it, no more."""
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(embedding=8, hidden=16), SIZES, vocabulary.ends)
    path = tmp_path / "policy.ckpt"
    save_policy(path, policy, vocabulary, {})
    for _ in range(2):
        load_policy(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {path}: untrained, its weights are as initialised; is it the right file?"
    norm = next(module for module in policy.modules() if isinstance(module, torch.nn.LayerNorm))
    with torch.no_grad():
        norm.bias[0] = 1e-6
    save_policy(tmp_path / "shifted.ckpt", policy, vocabulary, {})
    load_policy(tmp_path / "shifted.ckpt")
    with torch.no_grad():
        norm.bias[0] = 0.0
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-6)
    logits, value = policy(**inputs())
    (logits[:, 0].sum() + value.sum()).backward()
    optimizer.step()
    save_policy(tmp_path / "trained.ckpt", policy, vocabulary, {})
    load_policy(tmp_path / "trained.ckpt")
    assert capsys.readouterr().err == ""


def test_wrong_files_are_named(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "policy.ckpt"
    with pytest.raises(UserError, match="no such checkpoint"):
        load_policy(path)
    path.write_bytes(b"PK\x03\x04 but not really")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_policy(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="some other file"):
        load_policy(path)
    save_reference(path, make_model(2))
    with pytest.raises(UserError, match="a checkpoint of a reference"):
        load_policy(path)
    save_policy(path, make_for(vocabulary, PolicyConfig()), vocabulary, {})
    content = torch.load(path, weights_only=True)
    changes = {"format": 99, "config": {"depth": 3}, "weights": {}, "features": [1, 2]}
    for name, value in changes.items():
        torch.save(content | {name: value}, path)
        with pytest.raises(UserError, match=r"another version|of format 99"):
            load_policy(path)


def test_a_critic_of_its_own_sees_more_and_leaves_the_actor_alone() -> None:
    policy, seen = make(PolicyConfig(own_critic=True)), inputs()
    beyond = torch.randn(5, BEYOND)
    logits, value = policy(**seen, beyond=beyond)
    others, worth = policy(**seen, beyond=beyond + 1)
    assert torch.equal(logits, others)
    assert (value != worth).all()
    torch.testing.assert_close(policy(**seen)[1], policy(**seen, beyond=torch.zeros(5, BEYOND))[1])
    value.sum().backward()
    learnt = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert learnt == {"critic.0.weight", "critic.0.bias", "critic.2.weight", "critic.2.bias"}
    shared = make(PolicyConfig())
    assert torch.equal(shared(**seen, beyond=beyond)[1], shared(**seen)[1])
