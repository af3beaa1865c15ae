import hashlib
import sys
from pathlib import Path

import pytest

from offline.provenance import provenance


def test_what_made_a_file(tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"rows")
    found = provenance("bench policies", ["--data", "a file"], 7, [tmp_path / "a file"])
    assert found["command"] == "pika bench policies --data 'a file'"
    assert found["inputs"] == {"a file": hashlib.sha256(b"rows").hexdigest()}
    assert found["seed"] == 7
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "numpy" in found["versions"]
    assert found["finished_at"].endswith("Z")


def test_an_input_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        provenance("evaluate", [], None, [tmp_path / "absent"])
