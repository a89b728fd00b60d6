"""The built-in model: weights, tokenizer and chat template, and the code that makes them.

Importing this package costs nothing: the serving front does it, and never loads torch.
"""

from pathlib import Path
from typing import Final

MODEL_DIR: Final = Path(__file__).resolve().parent / "model"
"""The packaged Hugging Face folder: config, weights, tokenizer and chat template."""
