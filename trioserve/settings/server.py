"""Settings of the listener, its connections and its log."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trioserve.settings.values import Count, Seconds, SettingsGroup


class ServerSettings(SettingsGroup):
    """Server"""

    host: str = "127.0.0.1"
    """Address to listen on. Under ``hypercorn`` its own --bind counts."""
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one and logs it."""
    workers: Count = Field(default=1, le=64)
    """HTTP processes; the first one runs the engine and the others attach to it. Not under hypercorn, not with seed."""
    uds: Path | None = None
    """Unix socket to listen on, instead of host and port. Under ``hypercorn`` its own --bind counts."""
    fd: int | None = Field(default=None, ge=3)
    """A listening socket that whoever starts the server leaves open, by its number; he may hand it to the next one too.
    Sockets of a systemd unit are found without it. Under ``hypercorn`` --bind fd://3."""
    backlog: Count = 1024
    """Connections that may wait to be accepted."""
    drain_delay_s: Seconds = 5.0
    """Lame duck: time to go on serving after SIGTERM while /ready says 503, so that balancers notice."""
    drain_timeout_s: Seconds = 300.0
    """Time that running requests have after the lame duck before they are aborted."""
    send_timeout_s: Seconds = 60.0
    """Time after which a client that does not read is dropped."""
    keep_alive_timeout_s: Seconds = 75.0
    """Time an idle connection stays open."""
    sse_keep_alive_s: Seconds = 15.0
    """Silence after which a stream sends a comment, so that proxies keep it open; 0: never."""
    stream_arrival_time: bool = False
    """Whether every chunk of a stream says how long after the request it came, as if all asked for it."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """A second port, of the same host, for /metrics and the probes; 0 takes a free one and logs it."""
    metrics_aliases: Literal["none", "fastdeploy"] = "none"
    """fastdeploy: metrics go by FastDeploy's names too."""
    enable_tokenizer_info_endpoint: bool = False
    """Whether GET /tokenizer_info shows the tokenizer's configuration and chat template."""
    disable_docs: bool = False
    """Whether /openapi.json and the pages at / and /docs that show it are left out."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """Lines of less weight are left out."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """auto: text on a terminal, one JSON object a line elsewhere."""

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_level(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        both = sorted({"host", "port"} & self.model_fields_set)
        for name, value in (("uds", self.uds), ("fd", self.fd)):
            if value is not None and both:
                raise ValueError(
                    f"{name} = '{value}' is listened on instead of host and port: leave out {' and '.join(both)}"
                )
        if self.uds is not None and self.fd is not None:
            raise ValueError("uds and fd are two places to listen on: leave one of them out")
        return self
