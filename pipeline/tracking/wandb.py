"""Weights & Biases: the only file that imports it. Whatever it does, training goes on."""

import os
import secrets
import sys
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.config_io import resolved
from pipeline.tracking.points import STEP, Media, Point
from pipeline.tracking.sink import Sink


class Wandb(Sink):
    """The W&B run of a run folder. Online with an account and a network, else offline: `wandb sync` sends it later.

    Points are drawn over our own `step`: W&B drops points whose own step does not grow, which a resumed run would lose.
    """

    def __init__(self, config: Config, run: Path, wandb_id: str | None):
        self.run: Any = None
        self.id = wandb_id
        self.folder: str | None = None
        try:
            self._start(config, run, wandb_id)
        except Exception as error:  # whatever W&B does, training goes on
            _warn(f"W&B does not start ({error}); going on without it. metrics.jsonl has every point")

    def _start(self, config: Config, run: Path, wandb_id: str | None) -> None:
        import wandb

        settings = wandb.Settings(silent=True, init_timeout=20, console="off")
        options: dict[str, Any] = {
            "project": config.wandb.project,
            "entity": config.wandb.entity,
            "name": config.wandb.name or run.resolve().name,
            "tags": config.wandb.tags,
            "config": resolved(config),
            "id": wandb_id or secrets.token_hex(4),
            "dir": str(run),
            "settings": settings,
        }
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_account() else "offline")
        try:
            self.run = wandb.init(**options, mode=mode, resume="allow" if mode == "online" else None)
        except Exception as error:
            if mode == "offline":
                raise
            reason = str(error).partition("\n")[0]
            _warn(f"W&B cannot be reached ({reason}); logging offline. Send it later with: wandb sync {run}/wandb/...")
            wandb.teardown()  # its service would say that the id is in use
            self.run = wandb.init(**options, mode="offline")
        self.id = self.run.id
        self.folder = None if self.run.disabled else str(Path(self.run.dir).parent)
        self.run.define_metric(STEP)
        self.run.define_metric("*", step_metric=STEP)

    def log(self, point: Point) -> None:
        self._try(lambda: self.run.log(point))

    def log_media(self, media: Media) -> None:
        def show() -> None:
            import wandb

            tables = {key: wandb.Table(columns=[*columns], data=rows) for key, (columns, rows) in media.tables.items()}
            pictures = {key: wandb.Image(image, caption=text) for key, (image, text) in media.pictures.items()}
            self.run.log({STEP: media.step, **tables, **pictures})
            self.run.summary.update(media.summary)

        self._try(show)

    def close(self) -> None:
        if self.run is not None:
            self._try(self.run.finish)

    def _try(self, action) -> None:
        if self.run is None:
            return
        try:
            action()
        except Exception as error:
            _warn(f"W&B failed ({error}); going on without it. metrics.jsonl has every point")
            self.run = None


def _has_account() -> bool:
    import wandb

    return bool(wandb.setup().settings.api_key) or _in_netrc()


def _in_netrc() -> bool:
    import netrc
    from urllib.parse import urlparse

    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
