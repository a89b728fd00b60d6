"""Transformers' continuous batching by itself: ``python -m benchmarks.gpu.transformers_peer FOLDER COUNT``.

Greedy answers of 128 tokens to COUNT prompts of 128 at once, after a short run for what is made on first use. The last
line is JSON.
"""

import json
import sys
import time
from typing import Any, Final

import torch
import transformers

INPUT_TOKENS: Final = 128
OUTPUT_TOKENS: Final = 128
_THEIRS: Any = transformers
"""Whose functions are typed in part only."""
_WARM_UP_TOKENS: Final = 8


def main() -> None:
    folder, count = sys.argv[1], int(sys.argv[2])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _THEIRS.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, model.config.vocab_size, (count, INPUT_TOKENS), generator=generator).tolist()
    generate(model, prompts, _WARM_UP_TOKENS)
    began = time.perf_counter()
    num_tokens = generate(model, prompts, OUTPUT_TOKENS)
    print(json.dumps({"tokens_per_s": num_tokens / (time.perf_counter() - began)}))


def generate(model: Any, prompts: list[list[int]], num_tokens: int) -> int:
    """Answer all of them; returns how many tokens the answers have.

    Raises:
        RuntimeError: Some have fewer than asked for.
    """
    config = _THEIRS.GenerationConfig(
        max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    answers = model.generate_batch(prompts, generation_config=config)
    found = sum(len(answer.generated_tokens) for answer in answers.values())
    if found != num_tokens * len(prompts):
        raise RuntimeError(f"{found} tokens were made, not {num_tokens * len(prompts)}")
    return found


if __name__ == "__main__":
    main()
