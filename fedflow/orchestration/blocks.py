"""Blocks: a federation, its exchange, a site and a coordinator, as Prefect's UI keeps them.

They hold public facts, for flows of your own and for people who look things up. Nothing in fedflow
trusts one: keys and exchange come from the coordinator's folder and the site's policy, and no
process of a site ever loads a block. What a server changes in a block changes nothing at a site.
"""

from __future__ import annotations

from pathlib import Path

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, SecretStr, field_validator

from fedflow.coordinator.settings import CoordinatorFolder, open_coordinator
from fedflow.crypto.identity import PublicKey
from fedflow.errors import FedflowError, Refusal
from fedflow.wire.messages import LABEL

_DOCS = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")


def _key(text: str) -> str:
    try:
        return PublicKey.from_hex(text).hex()
    except FedflowError as error:
        raise ValueError(error.message) from None


class FedflowFederation(Block):
    """
    Who a federation is: its name, its authority's public key and where its exchange is.

    Example:
        Look up a federation, to show or compare its fingerprint:
        ```python
        from fedflow.orchestration import FedflowFederation

        federation = FedflowFederation.load("BLOCK_NAME")
        print(federation.fingerprint())
        ```
    """

    _block_type_name = "Fedflow Federation"
    _block_type_slug = "fedflow-federation"
    _documentation_url = _DOCS

    name: str = Field(
        min_length=1, max_length=63, description="The federation's name, as its authority gave it."
    )
    authority: str = Field(
        title="Authority's public key",
        description="The authority's public key: 64 hex digits, compared by fingerprint.",
    )
    exchange: str = Field(
        min_length=1,
        description="The exchange: a folder, an fsspec URL, or a relay's address; no credentials.",
    )

    @field_validator("authority")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        return _key(text)

    def fingerprint(self) -> str:
        """The authority's fingerprint, to read aloud and compare."""
        return PublicKey.from_hex(self.authority).fingerprint()


class FedflowExchange(Block):
    """
    Credentials with which the coordinator, and nobody else, reaches an S3-compatible exchange.

    Sites have credentials of their own, on their own machines.

    Example:
        Give the coordinator's process what fsspec reads:
        ```python
        from fedflow.orchestration import FedflowExchange

        exchange = FedflowExchange.load("BLOCK_NAME")
        os.environ |= exchange.environment()
        ```
    """

    _block_type_name = "Fedflow Exchange"
    _block_type_slug = "fedflow-exchange"
    _documentation_url = _DOCS

    url: str = Field(min_length=1, description="The exchange's URL, such as s3://bucket/prefix.")
    endpoint: str = Field(
        default="", description="The endpoint of an S3-compatible store; empty for AWS."
    )
    access_key_id: SecretStr = Field(description="The coordinator's access key id.")
    secret_access_key: SecretStr = Field(description="The coordinator's secret access key.")

    def environment(self) -> dict[str, str]:
        """Environment variables for the coordinator's process. They are secrets: never log them."""
        found = {
            "AWS_ACCESS_KEY_ID": self.access_key_id.get_secret_value(),
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key.get_secret_value(),
        }
        return found | ({"AWS_ENDPOINT_URL": self.endpoint} if self.endpoint else {})


class FedflowCoordinator(Block):
    """
    A coordinator: the folder on its own machine, and the federation it runs jobs for.

    Example:
        Open the coordinator's folder on its machine:
        ```python
        from fedflow.orchestration import FedflowCoordinator

        coordinator = FedflowCoordinator.load("BLOCK_NAME")
        folder = coordinator.open()
        ```
    """

    _block_type_name = "Fedflow Coordinator"
    _block_type_slug = "fedflow-coordinator"
    _documentation_url = _DOCS

    folder: Path = Field(
        description="The folder on the coordinator's machine that holds its key and state."
    )
    federation: FedflowFederation = Field(description="The federation it runs jobs for.")

    def open(self) -> CoordinatorFolder:
        """The folder, on the machine where it is.

        Refusal "other-federation" when its settings name another authority than the block: the
        folder is what counts, the block only a note about it.
        """
        found = open_coordinator(self.folder)
        if found.authority.hex() != self.federation.authority:
            raise Refusal(
                "other-federation",
                "the coordinator's folder trusts another authority than this block says",
            )
        return found


class FedflowSite(Block):
    """
    A site, as others know it: its label, work pool and public key. Nothing of its data or budget.

    Example:
        Look up a site's work pool:
        ```python
        from fedflow.orchestration import FedflowSite

        site = FedflowSite.load("BLOCK_NAME")
        print(site.work_pool, site.fingerprint())
        ```
    """

    _block_type_name = "Fedflow Site"
    _block_type_slug = "fedflow-site"
    _documentation_url = _DOCS

    label: str = Field(description="The site's label in manifests: small letters, digits, dashes.")
    public_key: str = Field(description="The site's public key: 64 hex digits.")
    work_pool: str = Field(
        default="", description="The site's work pool; the label when left empty."
    )

    @field_validator("label")
    @classmethod
    def _is_a_label(cls, text: str) -> str:
        if not LABEL.fullmatch(text):
            raise ValueError("a label is small letters, digits and dashes, at most 32")
        return text

    @field_validator("public_key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        return _key(text)

    def model_post_init(self, context: object, /) -> None:
        """The pool is called like the site unless something else was said."""
        super().model_post_init(context)
        self.work_pool = self.work_pool or self.label

    def fingerprint(self) -> str:
        """The site's fingerprint, to read aloud and compare."""
        return PublicKey.from_hex(self.public_key).fingerprint()
