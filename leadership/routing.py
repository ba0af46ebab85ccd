"""Requests always reach the leader: middleware for ASGI and WSGI applications.

    from leadership.routing import ASGIMiddleware

    app = ASGIMiddleware(app, candidate)      # the candidate's value: this process's host:port

What the application does is done under `scope["leadership.term"]` (for WSGI
`environ["leadership.term"]`): hand its token to what you write to.
`leadership proxy` does the same in front of processes without middleware.
"""

from .route_asgi import TERM, ASGIMiddleware
from .route_serving import drain, drain_async, lead, lead_async
from .route_wsgi import WSGIMiddleware
from .router import Policy

__all__ = [
    "TERM",
    "ASGIMiddleware",
    "Policy",
    "WSGIMiddleware",
    "drain",
    "drain_async",
    "lead",
    "lead_async",
]
