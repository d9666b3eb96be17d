"""Vocabulary size and token length: what tokens lose of the motion, and how well a small reference learns them.

    python scripts/studies/vocabulary_study.py --training runs/store/training --validation runs/store/validation \\
        --out DIR

Both are stores (``tokenize``). For every size and length a vocabulary is learnt, the validation split re-tokenised,
and a reference trained for the same number of steps; DIR keeps each, so that an interrupted study goes on. Prints a
Markdown table. Cross-entropies of vocabularies of different resolution do not say which is better, since finer
tokens leave more to predict; realism and minADE of sampled futures do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.scene import STEP_SECONDS
from data.store import SceneStore
from data.tokenizer import retokenisation_error
from data.vocabulary import TYPE_NAMES, Vocabulary, VocabularyConfig, build_vocabulary
from pipeline.evaluation.tables import render_table
from pipeline.fitting import FitConfig
from pipeline.stages.pretrain import PretrainConfig, run_pretrain


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--training", type=Path, required=True, help="store to learn from")
    parser.add_argument("--validation", type=Path, required=True, help="store to judge on")
    parser.add_argument("--out", type=Path, required=True, help="folder of vocabularies and trainings")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 400, 2048], help="K")
    parser.add_argument("--token_steps", type=int, nargs="+", default=[2, 5], help="length in 0.1 s")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--size", default="micro", help="of the reference")
    options = parser.parse_args(arguments)
    training, validation = SceneStore(options.training), SceneStore(options.validation)
    rows, columns = [], [(name, kind) for name in TYPE_NAMES for kind in ("mean", "p99")]
    for steps in options.token_steps:
        for size in options.sizes:
            folder = options.out / f"{size}x{steps}"
            path = folder / "vocabulary.pt"
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                build_vocabulary(training, VocabularyConfig(size=size, token_steps=steps), 0).save(path)
            errors = retokenisation_error(validation, Vocabulary.load(path))
            fit = FitConfig(
                steps=options.steps,
                validation_scenes=22,
                rollout_scenes=22,
                validate_every=options.steps,
            )
            figures = run_pretrain(
                PretrainConfig(size=options.size, fit=fit),
                scenes=options.training,
                validation=options.validation,
                vocabulary=path,
                out=folder,
            )
            rows.append(
                [
                    f"{size}",
                    f"{steps * STEP_SECONDS:.1f}",
                    *(
                        f"{100 * errors[f'{name}_position_{kind}_m']:.1f}"
                        for name in TYPE_NAMES
                        for kind in ("mean", "p99")
                    ),
                    f"{figures['validation_cross_entropy']:.3f}",
                    f"{figures['validation_top1']:.3f}",
                    f"{figures['validation_cross_entropy'] / (steps * STEP_SECONDS):.2f}",
                    f"{figures['validation_min_ade_m']:.2f}",
                    f"{figures['validation_realism']:.3f}",
                ]
            )
            print(rows[-1], file=sys.stderr, flush=True)
    names = [f"{name} {kind}, cm" for name, kind in columns]
    print(render_table([["K", "s", *names, "nats/token", "top-1", "nats/s", "minADE, m", "realism"], *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
