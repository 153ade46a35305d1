"""Every error fedflow raises on purpose, in three families.

* :class:`Misuse`: our own caller's bug (an API called out of order). Never caused by a peer.
* :class:`Violation`: the bytes or behaviour of a peer break the protocol. The peer is untrusted, so
  this is expected in operation and never crashes an agent.
* :class:`Refusal`: this party declines, by policy, budget or unusable input, and says why.

``code`` is a stable machine-readable word. The message is a sentence for people. Only ``code`` and
fixed, data-free sentences may cross to Prefect or another party: a message can quote a local file.
"""

from __future__ import annotations


class FedflowError(Exception):
    """Base of all deliberate errors: a stable ``code`` and a sentence for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


class Misuse(FedflowError):
    """The caller used an API wrongly. A bug on our side."""

    def __init__(self, message: str, code: str = "misuse") -> None:
        super().__init__(code, message)


class Violation(FedflowError):
    """A peer sent something the protocol forbids. ``blame`` names the site index, when known."""

    def __init__(self, code: str, message: str, blame: int | None = None) -> None:
        super().__init__(code, message)
        self.blame = blame


class Refusal(FedflowError):
    """This party declines. Raised before anything is released or spent."""


class InputError(Refusal):
    """A file or value given by a person is not usable: says what, where, and what is allowed.

    ``where`` reads like ``plan.toml:12`` and ``field`` like ``privacy.noise_multiplier``.
    """

    def __init__(
        self, message: str, *, where: str = "", field: str = "", allowed: str = ""
    ) -> None:
        parts = [f"{where}: " if where else "", f"{field}: " if field else "", message]
        if allowed:
            parts.append(f" (allowed: {allowed})")
        super().__init__("bad-input", "".join(parts))
        self.where = where
        self.field = field
        self.allowed = allowed


class Aborted(FedflowError):
    """A round ended without a result. What was reserved for it stays spent."""
