"""nginx and HAProxy: unpacked beside the virtual environment by `make test`, or those of this machine."""

import os
import shutil
import sys
from pathlib import Path

UNPACKED = Path(sys.prefix) / "proxies"
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu")


def program(name: str) -> str | None:
    """Where ``name`` is; None where there is none."""
    path = UNPACKED / "usr" / "sbin" / name
    return str(path) if path.exists() else shutil.which(name)


def environment() -> dict[str, str]:
    """With which they find their libraries."""
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(str(UNPACKED / folder) for folder in LIBRARIES)}


def nginx_config(folder: Path, site: Path | str) -> str:
    """A whole configuration around the site's, which writes to ``folder`` only."""
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/errors.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
{temporary}
    include {site};
}}
"""
