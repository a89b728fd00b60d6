"""From sampled token ids to text deltas: detokenizer, stop strings, logprobs. Sync and total."""
