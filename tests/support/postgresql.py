"""A PostgreSQL server of Debian's package, on loopback, that can be stopped and started again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/"), key=lambda one: int(one.parent.name))
USER = "postgres"
"""Who runs it where we are root, which it refuses to be run by."""
MISSING = (
    None
    if (BINARIES / "postgres").exists() and (os.geteuid() or shutil.which("setpriv"))
    else "PostgreSQL is not installed (Debian's package postgresql)"
)
QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "autovacuum=off", "max_connections=60")


@dataclass
class PostgreSql:
    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = None

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Returns once it takes connections."""
        settings = ["listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", *QUICK]
        options = [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            command = [BINARIES / "postgres", "-D", self.folder / "data", "-p", str(self.port), *options]
            self.process = subprocess.Popen(_as_user(command), cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError:
                said = (self.folder / "log").read_text(errors="replace")
                assert self.process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.05)

    def stop(self) -> None:
        """Every connection is cut off."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def connect(self, database: str) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self.url(database), autocommit=True)

    def make(self, database: str) -> str:
        """An empty database's URL."""
        with self.connect("postgres") as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        return self.url(database)


@contextmanager
def running() -> Iterator[PostgreSql]:
    folder = Path(tempfile.mkdtemp(prefix="pika-postgresql-"))
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam(USER)
            os.chown(folder, user.pw_uid, user.pw_gid)
        initdb = [BINARIES / "initdb", "-D", folder / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        done = subprocess.run(_as_user(initdb), cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            server = PostgreSql(folder, free.getsockname()[1])
        server.start()
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_user(command: list[str | Path]) -> list[str | Path]:
    if os.geteuid():
        return command
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--pdeathsig=INT", *command]
