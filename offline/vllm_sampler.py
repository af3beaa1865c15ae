"""Samples with vLLM inside this machine's processes, no server: one model after another, in child processes.

A child gives a model's memory back when it ends, and keeps torch and vLLM out of the command.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait

from offline.samplers import Job, Record, Sample, SamplingError
from offline.vllm_engine import Share, generate
from probes.engine.worker import die_with_parent


def sample(jobs: Sequence[Job], k: int, record: Record, replicas: int = 1) -> None:
    """Sample k answers for each job.

    Args:
        replicas: processes per model, each with the whole model, its share of the jobs, and its share of the GPUs or,
            without any, of the cores.

    Raises:
        SamplingError: a model does not load, a prompt does not fit, vLLM does not know a request field, or a process
            ended; what had come of the others is recorded.
    """
    jobs_by_model: dict[str, list[Job]] = {}
    for job in jobs:
        jobs_by_model.setdefault(job.arm.model, []).append(job)
    for model_jobs in jobs_by_model.values():
        for finished in _sampled(model_jobs, k, min(replicas, len(model_jobs))):
            record(finished)


def _sampled(jobs: list[Job], k: int, replicas: int) -> Iterator[Sample]:
    children = [_Child(jobs[index::replicas], k, Share(index, replicas)) for index in range(replicas)]
    try:
        left = {child.receiver: child for child in children}
        while left:
            for receiver in wait(list(left)):
                child = left[receiver]  # type: ignore[index]  # Connections are all that we wait for
                yield child.receive()
                if not child.samples_left:
                    del left[child.receiver]
        for child in children:
            child.process.join(timeout=30)
    finally:
        for child in children:
            child.stop()


class _Child:
    """A process with a model, and the pipe through which its samples come."""

    def __init__(self, jobs: list[Job], k: int, share: Share) -> None:
        context = multiprocessing.get_context("spawn")
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_run, args=(jobs, k, share, sender), daemon=True)
        self.process.start()
        sender.close()
        self.samples_left = len(jobs)
        self._source = jobs[0].arm.source

    def receive(self) -> Sample:
        """
        Raises:
            SamplingError: it failed, or has ended.
        """
        try:
            message = self.receiver.recv()
        except EOFError as error:
            self.process.join()
            raise SamplingError(
                f"vLLM's process for {self._source} ended with exit code {self.process.exitcode}; its output is above"
            ) from error
        if isinstance(message, SamplingError):
            raise message
        assert isinstance(message, Sample)
        self.samples_left -= 1
        return message

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(timeout=10)
        self.process.kill()
        self.receiver.close()


def _run(jobs: list[Job], k: int, share: Share, sender: Connection) -> None:
    """The child: sends a Sample for each job, or one SamplingError."""
    # Ctrl-C is the parent's to handle, and a parent that is killed takes this process with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    os.dup2(2, 1)  # what vLLM prints is no result of the command
    try:
        for finished in generate(jobs, k, share):
            sender.send(finished)
    except SamplingError as error:
        sender.send(error)
