"""Success-rate files as the research project's scripts write and read them, and as ours.

    Qwen/Qwen2.5-Math-1.5B-Instruct/MATH/train_maxlen_3000_k_5_temp_0.7.parquet
    openai/gpt-oss-20b_low/MATH/test_maxlen_131072_k_5_temp_1.0.parquet

Source: create_sr_datasets/create_pareto_sr_datasets.py of KabakaWilliam/llms_know_difficulty; its Hub's tables add k,
temperature and max_len. `foreign_rollouts.py` has the rows' meaning.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from offline.answer_table import read_table
from offline.conversion import ESTIMATED, Converted, Row, Sampled, assumed_tokens, estimate
from offline.evaluate import DataError, same_text, split_name
from offline.foreign_rollouts import our_row
from offline.provenance import METADATA, RECORDED, noted
from offline.rollout_dataset import configurations, sampled_arms
from offline.rollout_store import write

LOST = "the arms' own names, the extracted answers, seeds and metadata"
"""What these files have no place for."""
NO_SAMPLES = (
    "Only success rates are on record: input tokens are estimated, the problem's characters / 4, output assumed."
)
NO_TOKENS = "Tokens are estimated where they are not on record: the problem's and the samples' characters / 4."
_FILE = re.compile(
    r"(?P<split>[A-Za-z]+)(?:-(?P<more>.+?))?_maxlen_(?P<max_len>\d+)_k_(?P<k>\d+)_temp_(?P<temperature>\d+\.?\d*)"
)
"""`more` is the number of problems; in older files the model's name."""
_SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}")


def is_research(names: Sequence[str]) -> bool:
    """Whether columns are of this form: a success rate, or samples with their scores, and no verdict of one answer."""
    return "success_rate" in names or "generated_solutions" in names


def files_of(inputs: Sequence[Path]) -> list[Path]:
    """The files, with all parquet files below those that are folders."""
    found = [file for one in inputs for file in (sorted(one.rglob("*.parquet")) if one.is_dir() else [one])]
    if not found:
        raise DataError(f"{', '.join(map(str, inputs))}: no parquet file")
    return found


def read_research(files: Sequence[Path], model: str | None, sampled: Sampled) -> Converted:
    """Rows of our rollouts, in the files' order, with the files' splits.

    A problem that a model and split have twice, as some benchmarks do, is read once.

    Args:
        model: whose rollouts these are, where the files do not tell.

    Raises:
        DataError: a file cannot be read, or lacks what makes a row.
    """
    rows, seen, repeated = [], set(), set()
    tokens, notes = RECORDED, dict[str, None]()
    for file in files:
        table = read_table([file])
        before = noted(table.schema.metadata)
        notes |= dict.fromkeys(before.get("notes", []))
        for row, note in _rows_of(table, file, model, sampled):
            key = (row["arm"], same_text(row["problem"]))
            if key in seen:
                repeated.add(key[1])
                continue
            seen.add(key)
            rows.append(row)
            if note is not None:
                notes[note] = None
            if note is not None or before.get("tokens", RECORDED) != RECORDED:
                tokens = ESTIMATED
    return Converted(rows, tokens, len(repeated), notes=tuple(notes))


def _rows_of(table: pa.Table, file: Path, model: str | None, sampled: Sampled) -> Iterator[tuple[Row, str | None]]:
    """Each row, and what to say of its tokens where they are not on record."""
    named = _FILE.fullmatch(file.stem)
    shard = _SHARD.fullmatch(file.stem)
    told = {} if named is None else {name: float(named[name]) for name in ("max_len", "k", "temperature")}
    file_split = (named or shard or {"split": None})["split"]
    for row in table.to_pylist():
        split = str(row.get("split") or file_split or "").lower()
        of_row = row.get("model_name") or row.get("model")
        config = model.replace("/", "--", 1) if model else _configuration(file, of_row, named, shard)
        benchmark = sampled.benchmark or (file.parent.name if named else file.stem)
        ours = our_row({**told, **row}, config, split_name(split), benchmark)
        if not ours["generated_solutions"]:
            yield ours | _without_samples(ours, {**told, **row}.get("k") or sampled.k, sampled, file), NO_SAMPLES
        elif sampled.k not in (None, ours["k"]):
            raise DataError(f"{file} has {ours['k']} samples of each problem: leave --k out")
        elif ours["input_tokens"] and any(ours["output_tokens"]):
            yield ours, None
        else:
            outputs = [estimate(text) for text in ours["generated_solutions"]]
            yield ours | {"input_tokens": estimate(ours["problem"]), "output_tokens": outputs}, NO_TOKENS


def _configuration(file: Path, model: str | None, named: "re.Match[str] | None", shard: "re.Match[str] | None") -> str:
    """`openai--gpt-oss-20b_low`, by the folders; by what a row says where they do not tell."""
    if named is not None and (named["more"] or "0").isdigit() and len(file.absolute().parts) > 3:
        family, name = file.absolute().parts[-4:-2]
        is_bare = model is not None and "/" not in model and family == name.partition("-")[0]
        return name if is_bare else f"{family}--{name}"
    if shard is not None:
        return file.absolute().parent.name
    if not model:
        raise DataError(f"{file}: neither folders nor a column `model_name` tell the model: give --model OWNER/NAME")
    return str(model).replace("/", "--", 1)


def _without_samples(ours: Row, k: Any, sampled: Sampled, file: Path) -> Row:
    """What stands in their place where only the success rate is on record."""
    if not k:
        raise DataError(f"{file}: nothing tells how many samples a success rate is of: give --k N")
    k, rate = int(k), ours["success_rate"]
    right = round(rate * k)
    if not abs(rate * k - right) < 1e-6 or not 0 <= right <= k:  # NaN fails too
        raise DataError(f"{file}: success_rate {rate:g} is not that of {k} samples: give the right --k")
    return {
        "k": k,
        "generated_solutions": [""] * k,
        "extracted_answers": [None] * k,
        "correct": [True] * right + [False] * (k - right),
        "input_tokens": estimate(ours["problem"]),
        "output_tokens": [assumed_tokens(ours["model"], sampled)] * k,
    }


def write_research(rollouts: pa.Table, out: Path, provenance: Mapping[str, Any]) -> dict[Path, int]:
    """Files of this form below a folder; their numbers of rows.

    Args:
        provenance: goes into the files' metadata, which no reader of rows sees.

    Raises:
        DataError: an arm's samples are of several kinds, which one file name cannot say, or a file is there already.
        OSError: a file cannot be written.
    """
    known = sampled_arms(rollouts.schema)
    metadata = {METADATA: json.dumps(provenance, ensure_ascii=False).encode()}
    tables = {}
    for arm, config in configurations(rollouts).items():
        effort = known.get(arm, {}).get("reasoning_effort")
        of_arm = rollouts.filter(pc.equal(rollouts["arm"], arm))
        for split in of_arm["split"].unique().to_pylist():
            rows = of_arm.filter(pc.equal(of_arm["split"], split)).to_pylist()
            folder, name = _path(config, str(split), rows, arm)
            model = config.removesuffix(f"_{effort}").replace("--", "/", 1)
            table = pa.Table.from_pylist([_their_row(row, number, model) for number, row in enumerate(rows)])
            tables[out / folder / name] = table.replace_schema_metadata(metadata)
    there = [path for path in tables if path.exists()]
    if there:
        raise DataError(f"{there[0]} exists: remove it, or name another --out")
    for path, table in tables.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, table)
    return {path: table.num_rows for path, table in tables.items()}


def _path(config: str, split: str, rows: Sequence[Mapping[str, Any]], arm: str) -> tuple[Path, str]:
    family, _, name = config.partition("--")
    told = {column: {row[column] for row in rows} for column in ("benchmark", "max_tokens", "k", "temperature")}
    mixed = [column for column, values in told.items() if len(values) > 1]
    if mixed:
        raise DataError(f"arm {arm!r} mixes {mixed[0]} {', '.join(map(str, sorted(told[mixed[0]])))}: a file has one")
    benchmark, max_len, k, temperature = (values.pop() for values in told.values())
    folder = Path(family if name else config.partition("-")[0], name or config, re.sub(r"[^\w.-]", "_", benchmark))
    return folder, f"{_their_split(split)}_maxlen_{max_len}_k_{k}_temp_{temperature}.parquet"


def _their_split(split: str) -> str:
    return "val" if split == "validation" else split


def _their_row(row: Mapping[str, Any], number: int, model: str) -> dict[str, Any]:
    tokens = sum(row["output_tokens"]) or 1
    samples = [
        {
            "text": text,
            "score": float(correct),
            "input_tokens": row["input_tokens"],
            "output_tokens": count,
            "input_cost_usd_once": row["input_cost_usd_once"],
            "output_cost_usd": row["total_output_cost_usd"] * count / tokens,
            "rollout_cost_usd": row["total_output_cost_usd"] * count / tokens,
        }
        for text, correct, count in zip(row["generated_solutions"], row["correct"], row["output_tokens"], strict=True)
    ]
    return {
        "idx": number,
        "problem": row["problem"],
        "formatted_prompt": row["formatted_prompt"],
        "ground_truth": row["ground_truth"],
        "generated_solutions": samples,
        "total_input_tokens": row["input_tokens"],
        "total_output_tokens": sum(row["output_tokens"]),
        "total_cost_usd": row["total_cost_usd"],
        "input_cost_usd_once": row["input_cost_usd_once"],
        "total_output_cost_usd": row["total_output_cost_usd"],
        "success_rate": row["success_rate"],
        "pass_at_k": row["pass_at_k"],
        "majority_vote_extracted_answer": row["majority_vote_answer"],
        "majority_vote_is_correct": float(row["majority_vote_is_correct"]),
        "model_name": model,
        "task": row["benchmark"],
        "split": _their_split(row["split"]),
        "problem_id": row["problem_id"],
        "k": row["k"],
        "temperature": row["temperature"],
        "max_len": row["max_tokens"],
    }
