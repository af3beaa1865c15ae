"""Programs that nobody has read: what they may do, and what they may not whatever they try."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from offline.verifiers import sandbox
from offline.verifiers.base import VerifierError, load
from offline.verifiers.code import same_output
from tests.support.processes import no_process_left

ROOT = Path(__file__).parents[1]
FUNCTIONAL = {
    "kind": "functional",
    "entry_point": "add",
    "tests": [{"input": [1, 2], "output": 3}, {"input": [2, 2], "output": 4}],
}
STDIN = {"kind": "stdin", "tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "2 2\n", "output": "4\n"}]}
CHECK = {
    "kind": "check",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n",
}
READS = "a, b = map(int, input().split())\n"


@pytest.mark.parametrize(
    ("form", "program", "correct"),
    [
        (FUNCTIONAL, "def add(a, b):\n    return a + b", True),
        (FUNCTIONAL, "class Solution:\n    def add(self, a, b):\n        return a + b", True),
        (FUNCTIONAL, "print('noise')\ndef add(a, b):\n    print('more')\n    return a + b", True),
        (FUNCTIONAL, "def add(a, b):\n    return 3", False),
        (FUNCTIONAL, "def plus(a, b):\n    return a + b", False),
        (FUNCTIONAL, "def add(a, b):\n    return {a, b}", False),
        (FUNCTIONAL, "def add(a, b) return a + b", False),
        (FUNCTIONAL, "import os\ndef add(a, b):\n    os._exit(0)", False),
        (FUNCTIONAL | {"prelude": "from operator import *"}, "# the prelude has it", True),
        (STDIN, READS + "print(a + b)", True),
        (STDIN, READS + "print(float(a + b))\nexit(0)", True),
        (STDIN, "import sys, numpy\nprint(numpy.array(sys.stdin.read().split(), dtype=int).sum())", True),
        (STDIN, READS + "print(3)", False),
        (STDIN, READS + "print(a + b)\nraise ValueError", False),
        (STDIN, "import os\nos._exit(0)", False),
        (CHECK, "def add(a, b):\n    return a + b", True),
        (CHECK, "def add(a, b):\n    return 3", False),
        (CHECK, "raise SystemExit(0)", False),
        (CHECK, "import sys\ndef add(a, b):\n    sys.exit(0)", False),
        (CHECK, "import os\nos._exit(0)", False),
    ],
)
def test_only_a_program_that_passes_all_tests_is_correct(form: dict[str, object], program: str, correct: bool) -> None:
    code = load("code")
    answer = code.extract(f"Here it is:\n```python\n{program}\n```\nIt works.")
    assert answer == program + "\n"
    assert code.is_correct(answer, json.dumps(form)) is correct


def test_the_last_python_block_is_the_program() -> None:
    code = load("code")
    assert code.extract("```python\nold\n```\n```Python\nnew\n```\n```text\noutput\n```") == "new\n"
    assert code.extract("```\nplain\n```") == "plain\n"
    assert code.extract("```python\nnever closed") is None
    assert code.extract("no program at all") is None


@pytest.mark.parametrize(
    ("ground_truth", "message"),
    [
        ("tests", "Invalid JSON"),
        ('{"kind": "stdout"}', "'stdin', 'functional', 'check'"),
        ('{"kind": "stdin", "tests": []}', r"stdin\.tests: .*at least 1 item"),
        ('{"kind": "check", "entry_point": "f"}', r"check\.test: Field required"),
    ],
)
def test_a_ground_truth_of_another_form_is_named(ground_truth: str, message: str) -> None:
    with pytest.raises(VerifierError, match=message):
        load("code").is_correct(None, ground_truth)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3\n", "3", True),
        (" 3  \n4\n", "3\n4\n\n", True),
        ("3.0 1e2\n", "3 100", True),
        ("3\n\n4", "3\n4", False),
        ("3 4", "34", False),
        ("yes", "Yes", False),
        ("", "", True),
        ("3\n4", "3", False),
    ],
)
def test_output_is_compared_line_by_line(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


def run(program: str, cpu_s: int = 1) -> sandbox.Finished:
    with no_process_left():
        finished = sandbox.run(program, "", cpu_s)
    if finished.missing:
        pytest.skip(f"this kernel has no {finished.missing}")
    return finished


def test_an_endless_loop_is_ended_also_where_it_holds_on() -> None:
    assert run("while True: pass").exit_code == -signal.SIGXCPU
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run(stubborn).exit_code == -signal.SIGKILL


def test_a_program_that_only_waits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WAITING_S", 0.0)
    assert run("import time\ntime.sleep(3600)").exit_code == -signal.SIGKILL


def test_ten_gigabytes_are_refused() -> None:
    finished = run("try:\n    bytearray(10**10)\nexcept MemoryError:\n    print('refused')")
    assert finished.output == "refused\n"
    assert run("x = []\nwhile True: x.append(bytearray(10**7))", cpu_s=10).exit_code == 1


def test_a_thousand_children_are_not_one() -> None:
    program = """
import ctypes, os, subprocess
started = 0
libc = ctypes.CDLL(None)
for _ in range(1000):
    for start in (os.fork, os.forkpty, libc.fork, libc.vfork):
        try:
            pid = start()
        except OSError:
            continue
        if isinstance(pid, tuple):
            pid = pid[0]
        if pid == 0:
            os._exit(0)
        started += pid > 0
try:
    subprocess.run(["/bin/true"])
    started += 1
except OSError:
    pass
print(started)
"""
    assert run(program, cpu_s=5).output == "0\n"


def test_no_daemon_outlives_it() -> None:
    # `run` looks for processes that are left.
    run("import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(3600)")


def test_threads_are_as_in_any_program() -> None:
    program = "from concurrent.futures import ThreadPoolExecutor as P\nprint(sum(P(4).map(abs, [-1, -2])))"
    assert run(program).output == "3\n"


def test_it_writes_in_its_own_folder_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("here")
    program = f"""
import os
open("own", "w").write("mine")
print(open("own").read())
def attempt(do):
    try:
        do()
        print("done")
    except OSError:
        pass
attempt(lambda: open({str(tmp_path / "new")!r}, "w"))
attempt(lambda: open({str(precious)!r}, "a"))
attempt(lambda: os.remove({str(precious)!r}))
attempt(lambda: os.truncate({str(precious)!r}, 0))
attempt(lambda: os.rename("own", {str(tmp_path / "moved")!r}))
attempt(lambda: os.link({str(precious)!r}, "linked"))
attempt(lambda: os.symlink({str(tmp_path)!r}, "folder"))
attempt(lambda: open("folder/new", "w"))
attempt(lambda: open("../stdin", "w"))
attempt(lambda: open("/dev/shm/pika-escape", "w"))
attempt(lambda: os.chroot("."))
"""
    finished = run(program)
    assert (finished.exit_code, finished.output) == (0, "mine\n")
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]
    assert precious.read_text() == "here"


def test_it_reads_no_secret(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    program = f"""
import glob, os
print(dict(os.environ))
for file in [{str(token)!r}, *glob.glob("/proc/*/environ"), f"/proc/{{os.getppid()}}/environ", "/proc/self/environ"]:
    try:
        print(open(file).read())
    except OSError:
        pass
print("tried")
"""
    script = f"from offline.verifiers import sandbox; print(sandbox.run({program!r}, '', 5).output)"
    environ = os.environ | {"HF_TOKEN": "s3cret"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert "tried" in done.stdout
    assert "s3cret" not in done.stdout


def test_it_reaches_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(type=socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        tcp, udp = server.getsockname(), listener.getsockname()
        program = f"""
import socket
for attempt in (
    lambda: socket.create_connection({tcp!r}).sendall(b"here"),
    lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"here", {udp!r}),
):
    try:
        attempt()
        print("sent")
    except OSError:
        pass
print("tried")
"""
        assert run(program).output == "tried\n"
        for one in (server, listener):
            one.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        with pytest.raises(BlockingIOError):
            listener.recv(4)


@pytest.mark.parametrize(
    "attempt", ["os.kill(os.getppid(), 0)", "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1000, 1000))"]
)
def test_it_touches_no_other_process(attempt: str) -> None:
    finished = run(f"import os, resource\ntry:\n    {attempt}\nexcept PermissionError:\n    print('refused')")
    assert finished.output == "refused\n"
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 1000


def test_a_flood_is_cut_off() -> None:
    finished = run("while True: print('flood' * 1000)", cpu_s=10)
    assert finished.exit_code == -signal.SIGXFSZ
    assert len(finished.output) == sandbox.FILE_BYTES
    files = "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'wb').write(bytes(10**7))"
    assert run(files, cpu_s=60).exit_code == -signal.SIGKILL
