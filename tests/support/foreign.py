"""Texts unlike the nano pool's problems: German prose, Python functions, random tokens."""

import inspect
import json
import random
import statistics
import textwrap
from pathlib import Path
from types import ModuleType

from tokenizers import Tokenizer

SUBJECTS = ("Der alte Müller", "Eine Nachbarin", "Das Kind am Fenster", "Unser Lehrer", "Die Gärtnerin", "Ein Bäcker")
VERBS = ("erzählt", "schweigt", "träumt", "schreibt", "wundert sich", "spricht leise")
OBJECTS = ("vom langen Winter", "über die Brücke im Tal", "von früher", "über den Regen der letzten Nacht", "vom Meer")
ENDS = ("und geht dann nach Hause.", "während draußen Schnee fällt.", "obwohl niemand zuhört.", "bis es dunkel wird.")


def german(n: int, seed: int = 0) -> list[str]:
    """One to four sentences each."""
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, ENDS))

    return [" ".join(sentence() for _ in range(rng.randint(1, 4))) for _ in range(n)]


def python(n: int, seed: int = 0) -> list[str]:
    """Functions of the standard library, short ones first."""
    modules: list[ModuleType] = [inspect, json, random, statistics, textwrap]
    sources = set()
    for module in [*modules, json.decoder, json.encoder, __import__("argparse"), __import__("ast"), __import__("csv")]:
        for _, found in inspect.getmembers(module, inspect.isfunction):
            sources.add(inspect.getsource(found))
        for _, cls in inspect.getmembers(module, inspect.isclass):
            for _, found in inspect.getmembers(cls, inspect.isfunction):
                sources.add(textwrap.dedent(inspect.getsource(found)))
    short = sorted(source for source in sources if len(source) < 900)
    assert len(short) >= n
    return random.Random(seed).sample(short, n)


def random_tokens(n: int, model: Path, seed: int = 0) -> list[str]:
    """10 to 60 tokens each of a model's own vocabulary, evenly drawn, special ones left out."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rng = random.Random(seed)
    ordinary = [i for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i])]
    return [tokenizer.decode([rng.choice(ordinary) for _ in range(rng.randint(10, 60))]) for _ in range(n)]
