"""From logits to tokens, for the whole batch at once and for each sequence as if it were alone."""
