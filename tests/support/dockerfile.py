"""docker/Dockerfile, taken apart."""

from pathlib import Path

DOCKERFILE = Path(__file__).parents[2] / "docker/Dockerfile"


def stages() -> dict[str, dict[str, list[str]]]:
    """Arguments of each instruction of each stage, by the stage's name; those before the first stand under ''."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    found: dict[str, dict[str, list[str]]] = {"": {}}
    name = ""
    for word, rest in (line.split(maxsplit=1) for line in lines if line and line[0].isupper()):
        if word == "FROM":
            name = rest.split()[-1]
            found[name] = {}
        found[name].setdefault(word, []).append(rest)
    return found


STAGES = stages()


def environment(stage: str) -> dict[str, str]:
    """What a stage's ENV sets."""
    pairs = (word.partition("=") for rest in STAGES[stage]["ENV"] for word in rest.split())
    return {name: value for name, _, value in pairs}
