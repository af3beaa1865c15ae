"""Samples of arms without an endpoint on a Ray cluster with GPUs: `ray.data.llm`'s vLLM processor.

Written against Ray 2.60 and vLLM 0.32. No test runs it, since it needs a GPU and the CUDA build of vLLM.
"""

from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from offline.samplers import Job, Record, Sample, SampledArm, SamplingError, conversation, local_tokenizer, render
from offline.vllm_engine import TEMPLATE_FIELDS

BATCH_ROWS = 64


def sample(jobs: Sequence[Job], k: int, record: Record, replicas: int) -> None:
    """Sample k answers for each job of one model, on as many engines as `replicas` says.

    Raises:
        SamplingError: the cluster has no GPU, or vLLM or the model's tokenizer is not here.
    """
    ray: Any = import_module("ray")
    arm = jobs[0].arm
    if find_spec("vllm") is None or not ray.cluster_resources().get("GPU"):
        raise SamplingError(
            f"arm {arm.name!r} has no url, and to load {arm.source} Ray needs GPUs and pip install "
            f"'pika-router[ray,vllm]': give --url {arm.name}=http://HOST:PORT/v1, or --runner vllm"
        )
    tokenizer = local_tokenizer(arm.source)
    if tokenizer is None:
        raise SamplingError(f"{arm.source} has no tokenizer with a chat template here: hf download {arm.source}")
    llm: Any = import_module("ray.data.llm")
    engine_args = _engine_args(arm)
    # As vLLM's server does, the model's generation_config.json fills in what the request leaves open.
    defaults = engine_args.pop("sampling_defaults")
    processor = llm.build_processor(
        llm.vLLMEngineProcessorConfig(
            model_source=arm.source,
            engine_kwargs=engine_args,
            batch_size=BATCH_ROWS,
            concurrency=replicas,
            chat_template_stage=False,
        )
    )
    by_key = {(job.arm.name, job.split, job.problem_id): job for job in jobs}
    prompts = {
        key: render(tokenizer, job.arm, conversation(job, str(tokenizer.chat_template))) for key, job in by_key.items()
    }
    # The processor keeps one answer per row, hence k rows.
    rows = [
        {
            "key": list(key),
            "index": index,
            "prompt": prompts[key],
            "sampling_params": {**defaults, **_sampling_fields(job.arm), "seed": job.seed + index},
        }
        for key, job in by_key.items()
        for index in range(k)
    ]
    answers: dict[tuple[str, ...], dict[int, Any]] = {}
    for row in processor(ray.data.from_items(rows)).iter_rows():
        key = (str(row["key"][0]), str(row["key"][1]), str(row["key"][2]))
        of_key = answers.setdefault(key, {})
        of_key[int(row["index"])] = row
        if len(of_key) == k:
            record(_sample(by_key[key], prompts[key], [of_key[index] for index in range(k)]))
            del answers[key]


def _sample(job: Job, prompt: str, rows: Sequence[Any]) -> Sample:
    output_tokens = [int(row["num_generated_tokens"]) for row in rows]
    return Sample(
        arm=job.arm.name,
        split=job.split,
        problem_id=job.problem_id,
        formatted_prompt=prompt,
        solutions=[str(row["generated_text"]) for row in rows],
        input_tokens=int(rows[0]["num_input_tokens"]),
        output_tokens=output_tokens,
        # The processor drops the finish reason.
        truncated=[tokens >= job.arm.max_tokens for tokens in output_tokens],
    )


def _sampling_fields(arm: SampledArm) -> dict[str, Any]:
    return {name: value for name, value in arm.fields.items() if name not in TEMPLATE_FIELDS}


def _engine_args(arm: SampledArm) -> dict[str, Any]:
    """What of the pool's vLLM arguments concerns the engine, and under `sampling_defaults` the model's own."""
    from vllm import EngineArgs
    from vllm.utils import argparse_utils

    parser: Any = EngineArgs.add_cli_args(argparse_utils.FlexibleArgumentParser())  # type: ignore[no-untyped-call]  # vLLM leaves it untyped
    given = vars(parser.parse_known_args(list(arm.engine_args))[0])
    default = vars(parser.parse_known_args([])[0])
    known = {field.name for field in fields(EngineArgs)}
    engine_args = {name: value for name, value in given.items() if name in known and value != default[name]}
    engine_args |= {"max_model_len": arm.max_context_tokens, "enable_prefix_caching": True}
    model_config = EngineArgs(model=arm.source, **engine_args).create_model_config()
    return {**engine_args, "sampling_defaults": model_config.get_diff_sampling_param()}
