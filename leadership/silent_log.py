"""Where an HTTP server's own complaints go: who reaches the port must not fill our user's log."""

import logging

SILENT = logging.getLogger("leadership.http")
# Whoever wants to see them lowers this.
SILENT.setLevel(logging.CRITICAL + 1)
