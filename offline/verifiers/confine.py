"""Takes away from this process all that a program under test has no use for. Linux; standard library alone.

What holds, and what if the kernel lacks it:

| what | by | else |
| --- | --- | --- |
| memory, CPU time, size of a file, open files, no core dumps | resource limits | they hold on every Linux |
| starts, signals or traces no other process; opens no socket | seccomp filter | may start none, unless it is root |
| writes to its own folder alone, reads Python's files alone; no TCP, no signals out | Landlock | file permissions |
| has no privileges of root | capabilities dropped | who is not root has none |

Kernels have Landlock since 5.13 (TCP: 6.7, signals: 6.12), and seccomp filters on x86-64 and ARM64 are known here. None
of these needs root or a user namespace, so they hold in containers too. They stop accidents and common tricks; they are
no wall against a determined attacker: run programs that you have reason to fear in a virtual machine.

Sources: landlock(7), seccomp(2), capset(2).
"""

import ctypes
import os
import platform
import resource
import signal
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
OPEN_FILES = 64

WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = (1 << bit for bit in (1, 2, 3, 5, 8, 14))
READ = READ_FILE | READ_DIR
OWN_FOLDER = READ | WRITE_FILE | REMOVE_FILE | MAKE_REG | TRUNCATE
FILE = READ_FILE | WRITE_FILE | TRUNCATE
"""What can be allowed of a file that is no folder."""
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom", "/dev/random")

NAMES = (
    "fork", "vfork", "clone", "clone3", "socket", "io_uring_setup", "ptrace", "process_vm_readv", "process_vm_writev",
    "pidfd_getfd", "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "shmget", "msgget",
    "semget", "memfd_create", "prlimit64",
)  # fmt: skip
X86_64 = (57, 58, 56, 435, 41, 425, 101, 310, 311, 438, 62, 200, 129, 297, 424, 29, 68, 64, 319, 302)
ARM64 = (None, None, 220, 435, 198, 425, 117, 270, 271, 438, 129, 130, 138, 240, 424, 194, 186, 190, 279, 261)
SYSCALLS = {"x86_64": (0xC000003E, X86_64), "aarch64": (0xC00000B7, ARM64)}
"""Audit architecture, and the numbers of NAMES there."""
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, REFUSE, UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
"""REFUSE with EPERM; UNKNOWN with ENOSYS, upon which the C library starts threads in the older way."""
CONDITIONS = {"clone": (ANY_BIT, 0x10000), "prlimit64": (EQUAL, 0)}
"""On the first argument's lower half, when a call is allowed all the same: threads, limits of the caller itself."""
ERA_32 = 0x40000000
"""Where the numbers of x86-64's second, 32-bit call table begin."""


def confine(folder: str, readable: list[str], memory_bytes: int, cpu_s: int, file_bytes: int) -> list[str]:
    """Confine this process for good; it must have a single thread.

    Args:
        folder: the only place where it may write.
        readable: what it may read beside the system's libraries.
        file_bytes: the most that any file may grow to, standard output included.

    Returns:
        What this kernel could not do.
    """
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # a flood of output ends the process; Python would only see an error
    for what, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (least, least))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    missing = [] if _landlock(folder, readable) else ["Landlock"]
    _drop_capabilities()
    if not _seccomp():
        missing.append("seccomp")
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return missing


def _landlock(folder: str, readable: list[str]) -> bool:
    abi = LIBC.syscall(444, None, 0, 1)
    if abi < 1:
        return False
    access_bits = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    all_access = (1 << access_bits) - 1
    tcp = 0b11 if abi >= 4 else 0  # bind, connect
    scope = 0b11 if abi >= 6 else 0  # abstract sockets, signals
    attributes = (ctypes.c_uint64 * 3)(all_access, tcp, scope)
    ruleset = LIBC.syscall(444, attributes, 8 if abi < 4 else 16 if abi < 6 else 24, 0)
    if ruleset < 0:
        return False
    rules = dict.fromkeys((*SYSTEM, *readable), READ) | {"/dev/null": FILE, folder: OWN_FOLDER}
    for path, access in rules.items():
        if Path(path).exists():
            _allow(ruleset, path, access & all_access)
    done = bool(LIBC.syscall(446, ruleset, 0) == 0)
    os.close(ruleset)
    return done


def _allow(ruleset: int, path: str, access: int) -> None:
    opened = os.open(path, os.O_PATH)
    access &= access if Path(path).is_dir() else FILE
    rule = access.to_bytes(8, "little") + opened.to_bytes(4, "little")
    LIBC.syscall(445, ruleset, 1, rule, 0)
    os.close(opened)


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    LIBC.capset(header, (ctypes.c_uint32 * 6)())


def _seccomp() -> bool:
    if platform.machine() not in SYSCALLS:
        return False
    architecture, numbers = SYSCALLS[platform.machine()]
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    if platform.machine() == "x86_64":
        steps += [(AT_LEAST, 0, 1, ERA_32), (RETURN, 0, 0, REFUSE)]
    for name, number in zip(NAMES, numbers, strict=True):
        if name in CONDITIONS and number is not None:
            test, value = CONDITIONS[name]
            steps += [(EQUAL, 0, 4, number), (LOAD, 0, 0, 16), (test, 1, 0, value), (RETURN, 0, 0, REFUSE)]
            steps += [(RETURN, 0, 0, ALLOW)]
        elif number is not None:
            steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, UNKNOWN if name == "clone3" else REFUSE)]
    steps += [(RETURN, 0, 0, ALLOW)]
    code = b"".join(
        code.to_bytes(2, "little") + bytes((yes, no)) + value.to_bytes(4, "little") for code, yes, no, value in steps
    )
    instructions = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    program = Program(len(steps), ctypes.addressof(instructions))
    return bool(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0)
