"""Policy and tokenizer: Hub id, folder, or the embedded SmolLM2; LoRA; RoPE overrides."""
