r'''HumanEval: Python functions to be written from signature and description, judged by unit tests.

Source: openai/openai_humaneval, 164 problems in one split, which is cut here (Chen et al., Evaluating Large Language
Models Trained on Code, 2021). A row looks like this one, which is made up:

    task_id:            HumanEval/200
    prompt:             def double(n: int) -> int:
                            """Return twice n."""
    canonical_solution:     return 2 * n
    test:               def check(candidate):
                            assert candidate(4) == 8
    entry_point:        double
'''

import json

from offline.dataset_benchmark import CODE, DatasetBenchmark, Row


class Humaneval(DatasetBenchmark):
    dataset = "openai/openai_humaneval"
    question, answer = ("prompt",), ("test",)
    needs = ("entry_point",)
    keeps = ("task_id",)
    verifier = "code"
    suffix = CODE

    def text(self, row: Row, seed: int) -> str:
        return f"Complete this function:\n\n```python\n{row.text('prompt').strip()}\n```"

    def truth(self, row: Row, seed: int) -> str:
        # The prompt goes before a solution: its imports and helpers count, and the solution defines the function anew.
        prompt, entry_point = row.text("prompt"), row.text("entry_point")
        return json.dumps({"kind": "check", "entry_point": entry_point, "test": row.text("test"), "prelude": prompt})
