from pathlib import Path

import pytest

from offline.whole_file import whole, write_whole


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    write_whole(file, "old")

    def break_off() -> None:
        with whole(file) as unfinished:
            unfinished.write_text("half of the ne")
            assert file.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"policy.json": "old"}
    write_whole(file, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"policy.json": "new"}
