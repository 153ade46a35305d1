"""The untrusted mailbox: put-once objects under names, size-limited, checked on read.

Moves bytes, knows nothing of what they mean. Nothing here is trusted for more than availability:
authenticity comes from signatures inside the objects.
"""

from fedflow.exchange.base import Exchange, MemoryExchange
from fedflow.exchange.folder import FsspecExchange, open_exchange, resolve_url
from fedflow.exchange.frame import frame, unframe

__all__ = [
    "Exchange",
    "FsspecExchange",
    "MemoryExchange",
    "frame",
    "open_exchange",
    "resolve_url",
    "unframe",
]
