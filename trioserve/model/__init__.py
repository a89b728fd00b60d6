"""From a Hugging Face folder to a decoder that runs: config, loader, layers, one decoder for all families."""
