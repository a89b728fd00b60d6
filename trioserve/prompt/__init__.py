"""From what a client says to token ids: tokenizer, sandboxed chat templates, the renderer that joins them."""
