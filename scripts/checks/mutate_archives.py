"""Every way to spoil an archive that the tests know, and what validation says of it, as a Markdown table.

    python scripts/checks/mutate_archives.py

Archives are made of three hand-made scenarios.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.scenes_source import open_scenes
from data.tfrecord import write_records
from pipeline.agents.catalogue import make_agent
from submission.metadata import metadata_message
from submission.protos import Rollouts, to_proto
from submission.validate import validate_archive
from tests.builders import scenario_proto
from tests.submission.spoilt_archives import FILLED, SPOILT


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        protos = [scenario_proto(f"{index:016x}", steps=11, agents=2 + index) for index in range(3)]
        write_records(folder / "testing.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in protos])
        source, agent = open_scenes(folder), make_agent("constant_velocity", None)
        submission: pb.SimAgentsChallengeSubmission = metadata_message(FILLED)
        for scene in source:
            states = agent.rollouts(scene, 32, 0)
            # Joint scenes that are all the same would be suspicious.
            states[:, :, -1, 0] += 0.001 * states.new_tensor(range(32))[:, None]
            rollouts = Rollouts(str(scene.scenario_id), scene.agents.id[scene.simulated], states)
            submission.scenario_rollouts.add().CopyFrom(to_proto(rollouts))
        good, found = submission.SerializeToString(), 0
        print("| archive | what `validate` says, among others |\n| --- | --- |")
        for spoilt in SPOILT:
            path = folder / "submission.tar.gz"
            path.write_bytes(spoilt.make(good))
            verdict = validate_archive(path, source, lambda count: None)
            said = verdict.suspicions if spoilt.suspicion else verdict.defects
            line = next((line for line in said if spoilt.said in line), None)
            found += line is not None
            kind = "suspicious: " if spoilt.suspicion else ""
            print(f"| {spoilt.title} | {kind}{'(nothing)' if line is None else f'`{line}`'} |")
    print(f"\n{found} of {len(SPOILT)} named", file=sys.stderr)
    return 0 if found == len(SPOILT) else 1


if __name__ == "__main__":
    sys.exit(main())
