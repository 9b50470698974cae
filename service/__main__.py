"""`python -m service`: serve over HTTP as the environment says."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app
from service.logs import log_config
from service.settings import Settings


def serve(settings: Settings, app: FastAPI) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was accepted, and return."""
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=log_config(settings.log_level),
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )


def main() -> int:
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            name = "RECOMMENDER_" + "_".join(str(part) for part in problem["loc"]).upper()
            print(f"error: {name}={problem['input']!r}: {problem['msg']}", file=sys.stderr)
        return 2
    serve(settings, create_app(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
