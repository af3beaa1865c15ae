"""Nano models trained side by side: a process of one thread per chain of models, so that cores do not wait."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from offline.benchmarks.running_total import RunningTotal
from offline.nano_pool.recipe import Recipe
from probes.engine.worker import die_with_parent

EVERY = 20
"""Steps between what is said of progress."""

Said = tuple[str, int, float | dict[str, Any]]
"""(model, steps done, its loss, or its record when it is finished)"""


class TrainingError(Exception):
    """A model cannot be trained, read or written; the message names the fix."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Run:
    """What all models of one run have in common."""

    out: Path
    seed: int
    command: str
    """On record."""
    problems: int
    """Validation problems that accuracies are measured on."""


@contextmanager
def trainers(chains: Sequence[Sequence[Recipe]], run: Run) -> Iterator[Iterator[Said]]:
    """Train each chain's models, one after the other, and tell how it goes.

    Raises:
        TrainingError: something else stands where a model should go, a file cannot be written, or a process died.
    """
    context = multiprocessing.get_context("spawn")
    receivers: list[Connection] = []
    processes = []
    try:
        for chain in chains:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_train, args=(list(chain), run, sender), daemon=True)
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        yield _said(receivers)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _said(receivers: list[Connection]) -> Iterator[Said]:
    while receivers:
        for receiver in wait(receivers):
            assert isinstance(receiver, Connection)
            try:
                said = receiver.recv()
            except EOFError:
                raise TrainingError("a training process was killed: the same command goes on", 1) from None
            if said is None:
                receivers.remove(receiver)
            elif isinstance(said, TrainingError):
                raise said
            else:
                yield said


def _train(chain: list[Recipe], run: Run, sender: Connection) -> None:
    """The child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    die_with_parent()
    import torch

    from offline.nano_pool.tokenizer import train_tokenizer

    torch.set_num_threads(1)
    try:
        tokenizer = train_tokenizer(run.seed)
        for recipe in chain:
            sender.send((recipe.name, recipe.max_steps, _record(recipe, run, tokenizer, sender)))
        sender.send(None)
    except TrainingError as error:
        sender.send(error)
    except OSError as error:
        sender.send(TrainingError(str(error), 1))


def _record(recipe: Recipe, run: Run, tokenizer: Tokenizer, sender: Connection) -> dict[str, Any]:
    """How the model was trained, now or before."""
    from offline.nano_pool import model_folder
    from offline.nano_pool.training import accuracy, train

    folder = run.out / recipe.name
    record = model_folder.read_record(folder)
    if record is not None:
        if (record.get("recipe"), record.get("seed")) != (asdict(recipe), run.seed):
            raise TrainingError(f"{folder} holds a model of another recipe or seed: give another --out", 2)
        return record

    def on_step(step: int, loss: float) -> None:
        if step % EVERY == 0:
            sender.send((recipe.name, step, loss))

    start = None if recipe.begins_as is None else model_folder.load(run.out / recipe.begins_as)
    trained = train(recipe, tokenizer, run.seed, start, on_step)
    problems = RunningTotal().problems("validation", run.problems, run.seed + 1)
    asked = [(problem.problem, problem.ground_truth) for problem in problems]
    record = {
        "command": run.command,
        "parameters": trained.model.num_parameters(),
        "accuracy": accuracy(trained.model, tokenizer, asked, run.seed),
        **trained.record,
    }
    model_folder.save(folder, trained.model, tokenizer, record)
    return record
