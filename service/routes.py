"""The HTTP surface: each route is one sentence. Limits, errors and logs live in the middleware."""

from __future__ import annotations

from typing import Annotated, Any, cast
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import AfterValidator

from model.errors import NotReadyError
from model.store import Store
from service.errors import ErrorBody
from service.items import find_item, list_items, picture
from service.live import LiveRecommender
from service.protocols import Catalog
from service.schemas import (
    ItemResponse,
    ItemsQuery,
    ItemsResponse,
    LiveResponse,
    ReadyResponse,
    RecommendRequest,
    RecommendResponse,
)
from service.watcher import CatalogWatcher

_PROBLEMS: dict[int, tuple[str, str, str | None]] = {
    404: ("No such item, or it has no picture.", "item_not_found", None),
    410: ("The cursor belongs to a catalog that is not served any more.", "stale_cursor", None),
    413: ("The body is too large.", "body_too_large", None),
    422: ("A part of the request is unusable; `field` names it.", "invalid_request", "k"),
    429: ("Too many requests are waiting; `Retry-After` says when to come back.", "overloaded", None),
    500: ("A bug of the service; the log has it under `request_id`.", "internal_error", None),
    503: ("No catalog is served yet, or the service is shutting down.", "not_ready", None),
    504: ("The ranking was not ready in time.", "timeout", None),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the errors that a route may answer."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        description, code, field = _PROBLEMS[status]
        example = {"code": code, "message": description, "field": field, "request_id": "0f9d3c1e6f0b4d6c"}
        content = {"application/json": {"example": example}}
        described[status] = {"model": ErrorBody, "description": description, "content": content}
    return described


# FastAPI runs dependencies that are not async in a pool of threads: a tenth of a millisecond each.
async def _live(request: Request) -> LiveRecommender:
    return cast(LiveRecommender, request.state.live)


async def _watcher(request: Request) -> CatalogWatcher:
    return cast(CatalogWatcher, request.state.watcher)


async def _store(request: Request) -> Store:
    return cast(Store, request.state.store)


LiveDep = Annotated[LiveRecommender, Depends(_live)]
WatcherDep = Annotated[CatalogWatcher, Depends(_watcher)]
StoreDep = Annotated[Store, Depends(_store)]


async def _catalog(live: LiveDep) -> Catalog:
    return live.recommender.catalog


CatalogDep = Annotated[Catalog, Depends(_catalog)]
ItemIdDep = Annotated[
    str, Path(description="Percent-encoded, slashes included.", examples=["B058"]), AfterValidator(unquote)
]

router = APIRouter(responses=problems(500))


@router.post(
    "/recommend", responses=problems(413, 422, 429, 503, 504), response_model_exclude_unset=True, tags=["recommend"]
)
async def recommend(request: RecommendRequest, recommender: LiveDep) -> RecommendResponse:
    """Rank the catalog for one history."""
    return RecommendResponse.of(await recommender.rank(request.query()), request.include)


@router.get("/items", responses=problems(410, 422, 503), tags=["items"])
async def items(query: Annotated[ItemsQuery, Query()], catalog: CatalogDep) -> ItemsResponse:
    """Page through the catalog, or look up to 100 items up by id."""
    return list_items(catalog, query)


@router.get(
    "/items/{item_id:path}/image",
    response_class=Response,
    responses={
        200: {"description": "The picture.", "content": {"image/*": {}}},
        304: {"description": "The caller has it already."},
        **problems(404, 422, 503),
    },
    tags=["items"],
)
def item_image(
    item_id: ItemIdDep, catalog: CatalogDep, store: StoreDep, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Show an item's picture."""
    return picture(find_item(catalog, item_id), store.images, if_none_match)


@router.get("/items/{item_id:path}", responses=problems(404, 422, 503), tags=["items"])
async def item(item_id: ItemIdDep, catalog: CatalogDep) -> ItemResponse:
    """Show one item."""
    return ItemResponse.found(find_item(catalog, item_id), catalog)


@router.get("/health/live", tags=["health"])
async def live() -> LiveResponse:
    """Say that the process answers; restart it when this fails."""
    return LiveResponse()


@router.get("/health/ready", responses=problems(503), tags=["health"])
async def ready(live: LiveDep, watcher: WatcherDep) -> ReadyResponse:
    """Say what is served; send no requests while this is 503."""
    snapshot = live.snapshot
    if snapshot is None:
        raise NotReadyError(watcher.waiting_for)
    return ReadyResponse(
        status="degraded" if watcher.problem else "ready",
        checkpoint=snapshot.checkpoint_id,
        catalog_version=snapshot.catalog.version,
        num_items=snapshot.catalog.num_items,
        reason=watcher.problem,
    )
