"""Texts unlike the nano pool's problems: German prose, Python functions, random tokens."""

import argparse
import ast
import configparser
import inspect
import json
import json.decoder
import random
import statistics
import tarfile
import textwrap
from pathlib import Path

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
    sources = set()
    for module in (argparse, configparser, inspect, json.decoder, random, statistics, tarfile, textwrap):
        whole = Path(str(module.__file__)).read_text(encoding="utf-8")
        functions = (node for node in ast.walk(ast.parse(whole)) if isinstance(node, ast.FunctionDef))
        sources |= {textwrap.dedent(ast.get_source_segment(whole, node, padded=True) or "") for node in functions}
    short = sorted(source for source in sources if 60 < len(source) < 900)
    assert len(short) >= n
    return random.Random(seed).sample(short, n)


def random_tokens(n: int, model: Path, seed: int = 0) -> list[str]:
    """10 to 60 tokens each of a model's own vocabulary, evenly drawn, special ones left out."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    rng = random.Random(seed)
    ordinary = [i for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i])]
    return [tokenizer.decode([rng.choice(ordinary) for _ in range(rng.randint(10, 60))]) for _ in range(n)]
