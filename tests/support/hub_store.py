"""What the loopback Hub keeps, in memory, and how a process is told to use it."""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_loopbackTokenThatNobodyMayEverSee"
LARGE = (".safetensors", ".joblib", ".parquet", ".bin")
"""Kept as LFS, as the Hub's own .gitattributes has it."""


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    name: str
    kind: str = "model"
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    """Newest last."""
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes | None], message: str = "a commit") -> str:
        """Add, change or (None) delete files on main; returns the commit."""
        there = dict(self.commits[-1].files) if self.commits else {}
        for path, content in files.items():
            if content is None:
                del there[path]
            else:
                there[path] = content
        sha = hashlib.sha1(f"{self.name} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append(Commit(sha, message, there))
        self.refs["main"] = sha
        return sha

    def at(self, revision: str) -> Commit | None:
        sha = self.refs.get(revision, revision)
        return next((commit for commit in self.commits if commit.sha == sha), None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1].files


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """With its query."""
    headers: dict[str, str]
    """Names in lower case."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


Fault = Callable[[Any], bool]
"""Answers a request in the Hub's place, or changes how its handler will answer; returns whether the request is done."""


@dataclass
class Hub:
    port: int = 0
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    """By kind and name."""
    large: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by SHA-256."""
    faults: list[tuple[re.Pattern[str], Fault, int]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    before_commit: Callable[[Repository], None] | None = None
    """Called once, when the next commit arrives: somebody else is quicker."""
    page: int = 3
    """Entries of a tree told at once; the Hub's own pages have 1,000."""
    sizes_in_info: bool = True
    """Whether the repository's info tells files' sizes."""
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def repository(self, name: str, kind: str = "model", private: bool = False, gated: bool = False) -> Repository:
        made = Repository(name, kind, private, gated)
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.repositories[kind, name] = made
        return made

    def fails(self, pattern: str, fault: Fault, times: int = 1_000_000) -> None:
        """The next `times` requests whose "METHOD /path" the pattern is found in meet the fault."""
        self.faults.append((re.compile(pattern), fault, times))

    def works(self) -> None:
        self.faults.clear()

    def asked(self, pattern: str) -> list[Request]:
        return [request for request in list(self.requests) if re.search(pattern, str(request))]

    def environment(self, home: Path) -> dict[str, str]:
        """For a subprocess that is to use this Hub, logged in, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """The same for this process; `huggingface_hub` reads its environment when it is imported."""
        from huggingface_hub import constants

        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HOME", str(home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
