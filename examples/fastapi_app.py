"""A FastAPI application on every node: whichever is asked, the leader answers.

``python fastapi_app.py STORE HOST:PORT``
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request

from leadership.aio import Candidate, new_store
from leadership.routing import TERM, ASGIMiddleware, lead_async


def make_app(url: str, address: str) -> FastAPI:
    store = new_store(url)
    candidate = Candidate(store, "service/orders", address, value=address, ttl=5)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with store:
            leading = asyncio.create_task(candidate.run(lead_async))
            yield
            # What the leader had begun is answered before another leads.
            await candidate.stop()
            await leading

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ASGIMiddleware, participant=candidate)

    @app.post("/orders")
    async def order(request: Request) -> dict[str, object]:
        # What an order is written to should refuse a token that is older than it has seen.
        token = request.scope[TERM].token
        return {"order": await request.json(), "taken_by": address, "token": token}

    return app


if __name__ == "__main__":
    url, address = sys.argv[1:]
    host, _, port = address.rpartition(":")
    uvicorn.run(make_app(url, address), host=host, port=int(port), log_level="warning")
