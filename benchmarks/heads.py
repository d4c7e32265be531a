"""What a head costs beyond the embedding: milliseconds of an object, alone and in batches, for each task and pooling.

    python -m benchmarks.heads [--objects 300] [--repeat 15] [--json]

Objects with everything, from the simulated sky, are embedded once by the checkpoint in the package. The heads are
fitted on them for one epoch: what they say means nothing, what they cost is what a good head costs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from albireo.models.engine import Embedding
from albireo.models.head_fitting import Labels, Plan, fit
from albireo.models.heads import POOLINGS, TASKS, Head
from albireo.models.token_states import TokenStates
from albireo.models.torch_engine import TorchEngine
from albireo.observations.modalities import LABEL_KEYS
from albireo.observations.observation import Observation
from albireo.observations.sky import simulate
from albireo.tokenizers.checkpoint import MINI
from benchmarks.measuring import VOID_EXIT, gemm_rate, seconds, steady, use_all_cores
from benchmarks.objects import tokens_of

ALLOWED_MS = 2.0
"""What a head may cost an object beyond its embedding."""

BATCH = 32


def main() -> int:
    """Command line: see the module's first lines. Exit code 3: the machine was unsteady; 1: a head costs too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    use_all_cores()
    engine = TorchEngine.open(MINI)
    observations, embeddings = embedded(engine, args.objects)
    states = TokenStates.of(engine, observations, embeddings)
    before = gemm_rate()
    rows = {}
    for task in TASKS:
        for pooling in POOLINGS:
            plan = Plan(task, (task,), pooling=pooling, epochs=1, parts=(0.6, 0.1, 0.3, 0.0))
            head = fit(states, labels(states), plan)
            rows[f"{task}, {pooling}"] = {
                "alone_ms": cost(head, embeddings[:1], observations[:1], args.repeat),
                "batch_ms": cost(head, embeddings[:BATCH], observations[:BATCH], args.repeat),
            }
    after = gemm_rate()
    code = 0 if steady(before, after) else VOID_EXIT
    if not code and max(one for row in rows.values() for one in row.values()) > ALLOWED_MS:
        code = 1
    if args.json:
        print(json.dumps({"heads": rows, "gemm_gflops": [before, after]}, indent=2))
        return code
    tokens = median(len(one.values) for one in embeddings)
    print(
        f"{engine.name}, {tokens:.0f} tokens, {torch.get_num_threads()} threads, medians of {args.repeat}, ms an object"
    )
    print(f"{'':38}{'alone':>8}{f'of {BATCH}':>8}")
    for name, row in rows.items():
        print(f"{name:38}{row['alone_ms']:8.2f}{row['batch_ms']:8.2f}")
    print(f"GEMM probe {before:.0f} -> {after:.0f} GFLOP/s" + (": unsteady, the figures are VOID" if code == 3 else ""))
    return code


def embedded(engine: TorchEngine, n: int) -> tuple[list[Observation], list[Embedding]]:
    """Objects with all that the checkpoint reads of them, but for labels, and their token states."""
    wanted = engine.inputs.keys() - LABEL_KEYS
    observations = [
        replace(one, id=str(i), data={key: payload for key, payload in one.data.items() if key in wanted})
        for i, one in enumerate(simulate(n, np.random.default_rng(1)))
    ]
    tokens = tokens_of(engine, observations)
    embeddings = [one for start in range(0, n, BATCH) for one in engine.embed(tokens[start : start + BATCH], "tokens")]
    return observations, embeddings


def labels(states: TokenStates) -> Labels:
    """Labels of any kind, at random."""
    rng = np.random.default_rng(2)
    n = len(states)
    columns = {
        "regression": rng.normal(size=n),
        "classification": np.array(["star", "galaxy", "quasar"])[rng.integers(0, 3, n)],
        "redshift": rng.uniform(0, 3, n),
    }
    return Labels(tuple(states.ids), columns, "0" * 64, "at random")


def cost(head: Head, embeddings: list[Embedding], observations: list[Observation], repeat: int) -> float:
    """Milliseconds of an object, after a first call that builds the network."""
    head.predict(embeddings, observations)
    return (
        1e3 * median(seconds(lambda: head.predict(embeddings, observations)) for _ in range(repeat)) / len(embeddings)
    )


if __name__ == "__main__":
    sys.exit(main())
