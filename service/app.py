"""The application, wired in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from logging.config import dictConfig
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from model.bounded_cache import CacheSizes
from model.store import Store
from service import __version__
from service.errors import problem_of
from service.live import live_recommender
from service.logs import log_config
from service.middleware import CancelWhenGone, EncodedPath, ErrorForm, RequestLog, WholeBody
from service.protocols import Publications
from service.routes import router
from service.settings import Settings
from service.stored import StoredCatalogs
from service.watcher import catalog_watcher

DESCRIPTION = """A person's history goes in; the next items they are likely to want come out.

Every answer carries `X-Request-ID`: the caller's own where it sent a usable one. Every error has one form,
`{code, message, field, request_id}`; programs branch on `code`."""


def create_app(settings: Settings | None = None, publications: Publications | None = None) -> FastAPI:
    """The service. `publications`: where catalogs come from, by default the store of `settings`.

    Without `settings` this is the entry point of a process (`uvicorn service.app:create_app --factory`): the
    environment is read and logging set up.
    """
    if settings is None:
        settings = Settings()
        dictConfig(log_config(settings.log_level))
    app = FastAPI(
        title="Image-token recommender",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan(settings, publications),
        generate_unique_id_function=_operation_id,
    )
    app.include_router(router)
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_middleware(EncodedPath)  # added last = outermost
    app.add_middleware(CancelWhenGone)
    app.add_middleware(WholeBody, max_bytes=settings.max_body_bytes)
    app.add_middleware(ErrorForm)
    app.add_middleware(RequestLog)
    return app


def _lifespan(settings: Settings, publications: Publications | None) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        store = Store(settings.store)
        source = publications or StoredCatalogs(store, settings.device, _cache_sizes(settings))
        async with live_recommender(settings) as live, catalog_watcher(source, live, settings) as watcher:
            yield {"live": live, "watcher": watcher, "store": store}

    return lifespan


async def _answer(_: Request, error: Exception) -> JSONResponse:
    return problem_of(error).response()


def _cache_sizes(settings: Settings) -> CacheSizes:
    return CacheSizes(settings.user_vector_cache_bytes, settings.prefix_cache_bytes)


def _operation_id(route: APIRoute) -> str:
    return route.name
