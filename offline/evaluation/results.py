"""The two files of an evaluation: every figure as JSON, and every test problem as a row of parquet."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offline.evaluation.evaluation import Evaluation
from offline.provenance import METADATA, sha256
from offline.whole_file import whole, write_whole


def to_table(found: Evaluation, provenance: Mapping[str, Any]) -> pa.Table:
    """One row per test problem, from which all figures can be recomputed.

    Columns: `problem_id, problem`; per arm `success:ARM` (predicted probability), `cost:ARM` (measured mean USD),
    `expected_cost:ARM` (USD), `success_rate:ARM`; per method at its chosen setting `correct:METHOD` (probability that
    the answer is right), `usd:METHOD` (probes' prefill included), and `arm:METHOD` where one arm answers each problem.
    """
    trial = found.scale.trial
    arms = np.array(trial.arms)
    columns: dict[str, Any] = {
        "problem_id": trial.samples.outcomes.problem_ids,
        "problem": trial.samples.outcomes.problems,
    }
    for arm, name in enumerate(trial.arms):
        columns[f"success:{name}"] = trial.known.success[:, arm]
        columns[f"cost:{name}"] = trial.samples.usd[:, arm]
        columns[f"expected_cost:{name}"] = trial.known.cost[:, arm]
        columns[f"success_rate:{name}"] = trial.samples.success_rate[:, arm]
    for method in found.methods:
        if method.arms is not None:
            columns[f"arm:{method.name}"] = arms[method.arms]
        columns[f"correct:{method.name}"] = method.correct
        columns[f"usd:{method.name}"] = method.usd
    return pa.table(columns).replace_schema_metadata({METADATA: json.dumps(provenance).encode()})


def write(folder: Path, figures: Mapping[str, Any], table: pa.Table) -> None:
    """`results.parquet`, then `evaluation.json`, which knows it by its SHA-256; each whole or not at all.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with whole(folder / "results.parquet") as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
        digest = sha256(unfinished)
    text = json.dumps({**figures, "results_sha256": digest}, indent=1, allow_nan=False) + "\n"
    write_whole(folder / "evaluation.json", text)
