"""One tree of settings: defaults < ``trioserve.toml`` < ``TRIOSERVE_*`` < flags; frozen once built.

The classes are the groups of ``trioserve serve --help``, a module each; all fields share one flat name space, so that
``max_num_seqs``, ``TRIOSERVE_MAX_NUM_SEQS`` and ``--max-num-seqs`` are the same setting. ``flags`` knows the names that
other servers give them.
"""

from trioserve.settings.access import AccessSettings
from trioserve.settings.engine import EarlyStopConfig, EngineSettings, SpeculativeConfig
from trioserve.settings.gpus import find_gpus
from trioserve.settings.limits import LimitSettings
from trioserve.settings.load import EXIT_SETTINGS, load_settings, read_sources
from trioserve.settings.model import BUILTIN_MODEL, GenerationOverrides, ModelSettings
from trioserve.settings.places import CONFIG_VARIABLE, ENV_PREFIX, URL_VARIABLE, Source, source_of
from trioserve.settings.ranks import split_rank_address
from trioserve.settings.server import ServerSettings
from trioserve.settings.state import StateSettings
from trioserve.settings.tree import GROUPS, SECRET_VARIABLES, Settings

__all__ = [
    "BUILTIN_MODEL",
    "CONFIG_VARIABLE",
    "ENV_PREFIX",
    "EXIT_SETTINGS",
    "GROUPS",
    "SECRET_VARIABLES",
    "URL_VARIABLE",
    "AccessSettings",
    "EarlyStopConfig",
    "EngineSettings",
    "GenerationOverrides",
    "LimitSettings",
    "ModelSettings",
    "ServerSettings",
    "Settings",
    "Source",
    "SpeculativeConfig",
    "StateSettings",
    "find_gpus",
    "load_settings",
    "read_sources",
    "source_of",
    "split_rank_address",
]
