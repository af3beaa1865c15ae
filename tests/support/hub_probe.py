"""One probe on a Hub."""

from pathlib import Path

from tests.support.hub import Hub

REPO = "ann/probes"
REFERENCE = f"hf://{REPO}/large"


def publish(hub: Hub, folder: Path) -> None:
    """The probe in a private repository, beside files that are no part of it."""
    files = {f"large/{file.name}": file.read_bytes() for file in folder.iterdir()}
    hub.repository(REPO, private=True).commit({**files, "README.md": b"# probes", "large/notes.txt": b"mine"})
