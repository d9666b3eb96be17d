"""The Sim Agents realism meta-metric on tensors: Waymo's figures without TensorFlow.

from data.scenes_source import open_scenes
from submission.realism import load_config, prepare_scene, score

scene = open_scenes("womd/validation")[0]
context = prepare_scene(scene)                       # map and log features, once per scene
result = score(context, agent_id, states, load_config("2025"))   # [A], [R, A, 80, 4]
result.values["metametric"]
"""

from submission.realism.config import BUCKETS, COMPONENTS, MetricConfig, load_config
from submission.realism.credit import leave_one_out
from submission.realism.features import Features, SceneContext, load_context, prepare_scene, save_context
from submission.realism.score import (
    METRIC_FIELDS,
    Loss,
    SceneScore,
    buckets,
    diagnose,
    mean_metrics,
    score,
    score_states,
    unscorable_reason,
)

__all__ = [
    "BUCKETS",
    "COMPONENTS",
    "METRIC_FIELDS",
    "Features",
    "Loss",
    "MetricConfig",
    "SceneContext",
    "SceneScore",
    "buckets",
    "diagnose",
    "leave_one_out",
    "load_config",
    "load_context",
    "mean_metrics",
    "prepare_scene",
    "save_context",
    "score",
    "score_states",
    "unscorable_reason",
]
