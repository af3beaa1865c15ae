"""The process that runs one program under test, confined. Started by `sandbox.py`; standard library alone.

`python -I -S code_child.py JOB` where JOB is JSON: `limits` (the arguments of `confine`), `packages` (folders to import
from), `results` (a file descriptor), `calls`. Without `calls` the program is run as `python program.py` runs it. With
it, what to call stands on standard input, and is read after the program was loaded:
`{"entry_point", "inputs": [arguments, ...]}` or `{"entry_point", "test", "token"}`.

Results are lines: first what could not be confined; then, in JSON, what each call returned, or the token if the test
passed. A program that ends this process early therefore has no results.
"""

import builtins
import json
import os
import runpy
import sys
from pathlib import Path

PROGRAM = "program.py"


def main() -> None:
    job = json.loads(sys.argv[1])
    # Python's isolated mode imports nothing from here, and -S leaves out `exit`, which programs use.
    confine = runpy.run_path(str(Path(__file__).with_name("confine.py")))["confine"]
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # they are objects
    sys.path += job["packages"]
    sys.argv = [PROGRAM]
    missing = confine(**job["limits"])
    with os.fdopen(job["results"], "w", encoding="utf-8") as results:
        print(*missing, sep=", ", file=results, flush=True)
        if not job["calls"]:
            runpy.run_path(PROGRAM, run_name="__main__")
            return
        with os.fdopen(os.dup(0), encoding="utf-8") as wanted:
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            names = runpy.run_path(PROGRAM, run_name="program")
            call = json.loads(wanted.read())
        entry_point = names.get(call["entry_point"])
        if entry_point is None:
            entry_point = getattr(names["Solution"](), call["entry_point"])
        if "test" in call:
            Path("test.py").write_text(call["test"], encoding="utf-8")
            runpy.run_path("test.py", names, "test")["check"](entry_point)
            print(json.dumps(call["token"]), file=results)
            return
        for arguments in call["inputs"]:
            print(json.dumps(entry_point(*arguments)), file=results)


if __name__ == "__main__":
    main()
