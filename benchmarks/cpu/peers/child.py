"""An engine in a process of its own: reads commands, one JSON object a line, and answers each with one.

    python -m benchmarks.cpu.peers.child DRIVER PATH VARIANT THREADS

``{"prompts": [[...], ...], "num_tokens": N}`` -> ``{"prefill_s": ..., "decode_rate": ..., "token_ids": [[...], ...]}``;
``decode_rate`` is None where there is one token only. The first line says ``{"ready": true}``. Whatever an engine
prints goes to standard error.
"""

import importlib
import json
import os
import sys
from typing import Any

from benchmarks.cpu.peers.face import Driver, OpenDriver, Timeline


def answer(driver: Driver, command: dict[str, Any]) -> dict[str, Any]:
    """Carry one command out."""
    prompts, num_tokens = command["prompts"], command["num_tokens"]
    timeline = Timeline(len(prompts), num_tokens)
    token_ids = driver.generate(prompts, timeline)
    timeline.check()
    rate = timeline.decode_rate() if num_tokens > 1 else None
    return {"prefill_s": timeline.prefill_s(), "decode_rate": rate, "token_ids": token_ids}


def main() -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        name, path, variant, num_threads = sys.argv[1:]
        module = importlib.import_module(f"benchmarks.cpu.peers.drivers.{name}")
        open_driver: OpenDriver = module.open_driver
        driver = open_driver(path, variant, int(num_threads))
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(driver, json.loads(line))), file=answers, flush=True)
    os._exit(0)  # some engines do not end their threads


if __name__ == "__main__":
    main()
