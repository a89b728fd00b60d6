"""What a CPU makes of a model: the decoder and its kernels, without the server around them."""

import os

# as in a rank: torch's threads would spin for 20 ms after their step, on the cores that the next step is timed on
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
