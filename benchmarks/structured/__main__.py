"""What structured output costs.

    python -m benchmarks.structured tokens     a token under a schema against a free one, 1, 8 and 32 clients
    python -m benchmarks.structured first      the first request with a schema, new and known
    python -m benchmarks.structured attack     others' inter-token times while hostile schemas come in
    python -m benchmarks.structured libraries  llguidance and xgrammar beside each other

Everything runs on this machine with the built-in model, in turns, and prints medians and their ratio.
"""

import argparse
import sys

from benchmarks.structured import attack, first, libraries, tokens

PARTS = {"tokens": tokens.main, "first": first.main, "attack": attack.main, "libraries": libraries.main}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    options = parser.parse_args()
    PARTS[options.part](options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
