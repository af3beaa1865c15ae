"""Samples with vLLM inside this machine's processes, no server: one child process per model, one after another.

A child of its own gives a model's memory back when it ends, and keeps torch and vLLM out of the command.
"""

import logging
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from offline.samplers import Job, Record, Sample, SampledArm, SamplingError, render
from probes.engine.worker import die_with_parent

SEQUENCES = 256
"""Answers that vLLM generates at a time."""
TEMPLATE_FIELDS = ("reasoning_effort", "chat_template_kwargs")
"""Request fields that shape the prompt, not the sampling."""


def sample(jobs: Sequence[Job], k: int, record: Record) -> None:
    """Sample k answers for each job.

    Raises:
        SamplingError: a model does not load, a prompt does not fit, or vLLM does not know a request field.
    """
    jobs_by_model: dict[str, list[Job]] = {}
    for job in jobs:
        jobs_by_model.setdefault(job.arm.model, []).append(job)
    for model_jobs in jobs_by_model.values():
        for finished in _child(model_jobs, k):
            record(finished)


def _child(jobs: list[Job], k: int) -> Iterator[Sample]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(jobs, k, sender), daemon=True)
    process.start()
    sender.close()
    try:
        for _ in jobs:
            message = receiver.recv()
            if isinstance(message, SamplingError):
                raise message
            yield message
        process.join(timeout=30)
    except EOFError as error:
        process.join()
        raise SamplingError(
            f"vLLM's process for {jobs[0].arm.source} ended with exit code {process.exitcode}; its output is above"
        ) from error
    finally:
        process.terminate()
        process.join(timeout=10)
        process.kill()


def _run(jobs: list[Job], k: int, sender: Connection) -> None:
    """The child: sends a Sample for each job, or one SamplingError."""
    # Ctrl-C is the parent's to handle, and a parent that is killed takes this process with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    os.dup2(2, 1)  # what vLLM prints is no result of the command
    try:
        for finished in _generate(jobs, k):
            sender.send(finished)
    except SamplingError as error:
        sender.send(error)


def _generate(jobs: list[Job], k: int) -> Iterator[Sample]:
    """Keeps vLLM's batch full until the last job: a new one starts as soon as there is room."""
    arm = jobs[0].arm
    engine = _engine(arm)
    tokenizer = engine.get_tokenizer()
    waiting, running = deque(jobs), dict[str, tuple[Job, str]]()
    while waiting or running:
        # Twice what fits, so that the next prompts are there when a step has room for them.
        while waiting and len(running) * k < 2 * SEQUENCES:
            job = waiting.popleft()
            text = render(tokenizer, job.arm, job.messages)
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
            )


def _engine(arm: SampledArm) -> Any:
    os.environ.update(arm.env)
    # Without vLLM's own child process and with two threads small models run several times faster.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = "2"
    # The progress bar stays readable; errors still show.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform
    from vllm.utils import argparse_utils

    parser: Any = EngineArgs.add_cli_args(argparse_utils.FlexibleArgumentParser())  # type: ignore[no-untyped-call]
    # The pool's own arguments, so that rollouts run as the served model does; those of the HTTP server are skipped.
    engine_args = EngineArgs.from_cli_args(parser.parse_known_args(list(arm.engine_args))[0])
    engine_args.model = arm.source
    engine_args.max_model_len = arm.max_context_tokens
    engine_args.max_num_seqs = SEQUENCES
    engine_args.enable_prefix_caching = True
    engine_args.disable_log_stats = True
    engine_args.use_tqdm_on_load = False
    if current_platform.is_cpu():
        engine_args.enforce_eager = True
        # Short prompts share no block of the default size, 128; 16 is refused.
        engine_args.block_size = 32
        # A seeded prompt that is prefilled in chunks ends vLLM 0.32 on a CPU ("CPU Generator does not use offset").
        engine_args.enable_chunked_prefill = False
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
