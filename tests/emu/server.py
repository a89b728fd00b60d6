"""``trioserve serve`` on a machine that seems to have a GPU: its ranks compute on the emulator."""

import sys
from unittest.mock import patch

from trioserve import cli
from trioserve.executor.rank import LocalRank
from trioserve.settings.gpus import Gpus

if __name__ == "__main__":
    LocalRank.module = "tests.emu.worker"
    with patch("trioserve.settings.engine.find_gpus", lambda: Gpus(1)):
        sys.exit(cli.main())
