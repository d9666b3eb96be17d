"""One small world, and an untrained policy."""

from __future__ import annotations

import pytest

from data.vocabulary import Vocabulary
from models.policy import Policy
from models.reference.agent import ReferenceAgent
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.studies.cosimulation.area import Area, build_area
from pipeline.studies.cosimulation.drive import Drive, DriveConfig, drive
from pipeline.studies.cosimulation.drivers import straight_driver
from tests.models.reference.conftest import make_model
from tests.pipeline.conftest import VIEW, make_policy

STEPS = 20
CONFIG = DriveConfig(steps=STEPS, warm_up=150, share=0.3, seed=0)


@pytest.fixture(scope="session")
def area(tmp_path_factory: pytest.TempPathFactory) -> Area:
    return build_area(4, 0, 0, 20.0, tmp_path_factory.mktemp("area"))


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return ReferenceAgent(make_model(2)).vocabulary


@pytest.fixture(scope="session")
def policy(vocabulary: Vocabulary) -> Policy:
    return make_policy(vocabulary)


@pytest.fixture(scope="session")
def agent(policy: Policy, vocabulary: Vocabulary) -> PolicyAgent:
    return PolicyAgent(policy, vocabulary, VIEW)


@pytest.fixture(scope="session")
def own(area: Area) -> Drive:
    """SUMO's own model."""
    return drive(area, CONFIG, None)


@pytest.fixture(scope="session")
def straight(area: Area) -> Drive:
    """Constant velocity."""
    return drive(area, CONFIG, straight_driver(area, 2))
