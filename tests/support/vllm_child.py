"""Scores prompts by vLLM inside this process, one model after the other: importing vLLM is most of the time.

python -m tests.support.vllm_child FOLDER      (FOLDER/prompts.json, FOLDER/<name>/model, FOLDER/<name>/probes/*)

Leaves FOLDER/<name>/scores.npy, in which the activations that the pooler was given stand behind the scores, and
FOLDER/<name>/facts.json.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

CONCURRENT, CHUNK, BLOCK = 32, 64, 32
TOGETHER = {"Qwen3": 1024}
"""Tokens of a step where several prompts are to share one; `CHUNK` cuts most prompts in pieces."""


def main(folder: Path) -> None:
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"})
    os.environ.update({"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"})

    import numpy as np
    from torch import nn
    from vllm import LLM, ModelRegistry

    from probes.artifact import Artifact, load_artifact
    from probes.base import Inputs
    from probes.engine import heads, vllm_model
    from probes.engine.base import Scores
    from probes.engine.vllm_plugin import STOCK
    from probes.engine.vllm_serving import overrides

    # What the plug-in registers by name, vLLM looks at in a process of its own, each for itself.
    for stock in STOCK:
        ModelRegistry.register_model(f"Probe{stock}", getattr(vllm_model, f"Probe{stock}"))

    scores, steps = heads.scores, []

    def with_activations(artifacts: Sequence[Artifact], inputs: Inputs, *, partial: bool) -> Scores:
        found = scores(artifacts, inputs, partial=partial)
        steps.append(len(found.success))
        columns = [found.activation_percentile, *inputs.activations.values()]
        return replace(found, activation_percentile=np.concatenate(columns, axis=1))

    heads.scores = with_activations

    def facts(model: nn.Module) -> dict[str, object]:
        return {"class": type(model).__name__, "parameters": [name for name, _ in model.named_parameters()]}

    prompts = [{"prompt_token_ids": ids} for ids in json.loads((folder / "prompts.json").read_text())]
    for one in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        artifacts = [load_artifact(probe, verify=False) for probe in sorted((one / "probes").iterdir())]
        llm = LLM(
            model=str(one / "model"), runner="pooling", dtype="float32", hf_overrides=overrides(artifacts),
            load_format="safetensors", skip_tokenizer_init=True, enforce_eager=True, max_model_len=512,
            max_num_seqs=CONCURRENT, max_num_batched_tokens=TOGETHER.get(one.name, CHUNK), enable_chunked_prefill=True,
            enable_prefix_caching=True, block_size=BLOCK, kv_cache_memory_bytes=2**26,
        )  # fmt: skip
        steps.clear()
        outputs = llm.encode(prompts, pooling_task="classify", use_tqdm=False)
        np.save(one / "scores.npy", np.stack([output.outputs.data.numpy() for output in outputs]))
        cached = [output.num_cached_tokens for output in outputs]
        told = {**llm.apply_model(facts)[0], "cached": cached, "prompts_of_steps": steps}
        (one / "facts.json").write_text(json.dumps(told))
        del llm


if __name__ == "__main__":
    main(Path(sys.argv[1]))
