"""The plug-in for vLLM, of the entry point group `vllm.general_plugins`: every process of vLLM calls `register`.

Imports no vLLM before that, and no model's code at all: a vLLM server that serves no probes pays nothing for it.
"""

NAME = "pika_probes"
"""Of the entry point, by which VLLM_PLUGINS may choose it."""

STOCK = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MistralForCausalLM": "mistral",
    "GptOssForCausalLM": "gpt_oss",
}
"""The architectures whose activations we read -> vLLM's module of each."""


def register() -> None:
    """Make the architectures `Probe<Arch>` known to vLLM."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for stock in STOCK:
        if f"Probe{stock}" not in known:
            ModelRegistry.register_model(f"Probe{stock}", f"probes.engine.vllm_model:Probe{stock}")
