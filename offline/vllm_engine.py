"""The child process of `vllm_sampler`: vLLM's engine, fed with jobs."""

import logging
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from offline.samplers import Job, Sample, SampledArm, SamplingError, conversation, render

SEQUENCES = 256
"""Answers that vLLM generates at a time."""
TEMPLATE_FIELDS = ("reasoning_effort", "chat_template_kwargs")
"""Request fields that shape the prompt, not the sampling."""

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """What one of several equal processes gets of the machine."""

    index: int
    replicas: int

    def of(self, things: Sequence[T]) -> list[T]:
        """As many as every other process gets, neighbours; what cannot be shared out equally is left over."""
        size = len(things) // self.replicas
        return list(things[self.index * size : (self.index + 1) * size])


def generate(jobs: Sequence[Job], k: int, share: Share) -> Iterator[Sample]:
    """Samples of jobs of one model. Keeps vLLM's batch full until the last job: a new one starts as soon as there is
    room.

    Raises:
        SamplingError: the model does not load, a prompt does not fit, or vLLM does not know a request field.
    """
    engine = _engine(jobs[0].arm, share)
    tokenizer = engine.get_tokenizer()
    waiting, running = deque(jobs), dict[str, tuple[Job, str]]()
    while waiting or running:
        # Twice what fits, so that the next prompts are there when a step has room for them.
        while waiting and len(running) * k < 2 * SEQUENCES:
            job = waiting.popleft()
            text = render(tokenizer, job.arm, conversation(job, str(tokenizer.chat_template)))
            token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            _check_length(job, len(token_ids))
            request_id = f"{job.arm.name}/{job.split}/{job.problem_id}"
            engine.add_request(request_id, {"prompt_token_ids": token_ids}, _sampling_params(engine, job, k))
            running[request_id] = job, text
        for output in engine.step():
            job, text = running.pop(output.request_id)
            answers = sorted(output.outputs, key=lambda answer: answer.index)
            yield Sample(
                arm=job.arm.name,
                split=job.split,
                problem_id=job.problem_id,
                formatted_prompt=text,
                solutions=[answer.text for answer in answers],
                input_tokens=len(output.prompt_token_ids),
                output_tokens=[len(answer.token_ids) for answer in answers],
                truncated=[answer.finish_reason == "length" for answer in answers],
            )


def _engine(arm: SampledArm, share: Share) -> Any:
    os.environ.update(arm.env)
    cores = share.of(sorted(os.sched_getaffinity(0)))
    # Without vLLM's own child process and with two threads small models run several times faster.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(max(1, min(2, len(cores))))
    # The progress bar stays readable; errors still show.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform
    from vllm.utils import argparse_utils

    parser: Any = EngineArgs.add_cli_args(argparse_utils.FlexibleArgumentParser())  # type: ignore[no-untyped-call]  # vLLM leaves it untyped
    # The pool's own arguments, so that rollouts run as the served model does; those of the HTTP server are skipped.
    engine_args = EngineArgs.from_cli_args(parser.parse_known_args(list(arm.engine_args))[0])
    engine_args.model = arm.source
    engine_args.max_model_len = arm.max_context_tokens
    engine_args.max_num_seqs = SEQUENCES
    engine_args.enable_prefix_caching = True
    engine_args.disable_log_stats = True
    engine_args.use_tqdm_on_load = False
    if current_platform.is_cpu():
        if cores:  # vLLM pins its threads to the first cores it may use
            os.sched_setaffinity(0, cores)
        engine_args.enforce_eager = True
        # Short prompts share no block of the default size, 128; 16 is refused.
        engine_args.block_size = 32
        # A seeded prompt that is prefilled in chunks ends vLLM 0.32 on a CPU ("CPU Generator does not use offset").
        engine_args.enable_chunked_prefill = False
    elif share.replicas > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_gpus(share, engine_args.tensor_parallel_size)
    try:
        return LLMEngine.from_engine_args(engine_args)
    except Exception as error:
        raise SamplingError(f"vLLM cannot load {arm.source} for arm {arm.name!r}: {error}") from error


def _sampling_params(engine: Any, job: Job, k: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    fields = {name: value for name, value in job.arm.fields.items() if name not in TEMPLATE_FIELDS}
    # As vLLM's server does, the model's generation_config.json fills in what the request leaves open.
    defaults = engine.model_config.get_diff_sampling_param()
    try:
        return SamplingParams(
            **{**defaults, **fields, "n": k, "seed": job.seed, "output_kind": RequestOutputKind.FINAL_ONLY}
        )
    except (TypeError, ValueError) as error:
        raise SamplingError(
            f"in-process vLLM refuses the request fields of arm {job.arm.name!r}: {error}; "
            "mend them, or sample from a server with --runner endpoint"
        ) from error


def _check_length(job: Job, prompt_tokens: int) -> None:
    arm = job.arm
    if prompt_tokens + arm.max_tokens > arm.max_context_tokens:
        raise SamplingError(
            f"problem {job.problem_id} has {prompt_tokens} prompt tokens and --max-tokens is {arm.max_tokens}: "
            f"together over the max_context_tokens of {arm.model!r}, {arm.max_context_tokens}; lower --max-tokens"
        )


def visible_gpus(share: Share, per_replica: int) -> str:
    """CUDA_VISIBLE_DEVICES of this process.

    Raises:
        SamplingError: there are too few.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    ours = share.of(gpus)
    if len(ours) < per_replica:
        raise SamplingError(
            f"--replicas {share.replicas} of {per_replica} GPUs each do not fit on {len(gpus)}: lower it, or name more "
            "GPUs in launch.gpus or CUDA_VISIBLE_DEVICES"
        )
    return ",".join(ours[:per_replica])
