"""``fedflow exchange``: serve the mailbox over HTTP, mirror a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from fedflow.crypto.identity import Identity, PublicKey
from fedflow.errors import InputError, Violation
from fedflow.exchange import open_exchange
from fedflow.exchange.copying import copy_job
from fedflow.extras import need

app = typer.Typer(
    help="The mailbox of a federation: serve it over HTTP, or mirror a job from it.",
    no_args_is_help=True,
)


@app.command(epilog="Example: fedflow exchange serve /srv/federation --authority HEX --port 8790")
def serve(
    folder: Annotated[
        Path | None, typer.Argument(help="Keep objects in this folder; or use --database.")
    ] = None,
    authority: Annotated[
        str, typer.Option(help="The federation authority's public key, 64 hex digits.")
    ] = "",
    database: Annotated[
        str | None,
        typer.Option(
            envvar="FEDFLOW_RELAY_DATABASE",
            help="Keep objects in PostgreSQL: postgresql://user:password@host/name.",
            show_envvar=True,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0 for a free one.")] = 8790,
    roster: Annotated[Path | None, typer.Option(help="A signed member list to start with.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="TLS certificate chain (PEM); needs --key.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of a proxy whose X-Forwarded-For is believed; repeatable."),
    ] = None,
    keep_days: Annotated[
        float | None,
        typer.Option(min=0, help="Remove jobs that are over after so many days. Default: never."),
    ] = None,
    site_gib: Annotated[
        float, typer.Option(min=0.001, help="What one site may store in one job (GiB).")
    ] = 64.0,
    site_rate: Annotated[
        float, typer.Option(min=0.1, help="Requests per second of one site.")
    ] = 200.0,
    memory_gib: Annotated[
        float, typer.Option(min=0.01, help="Objects in memory at once, in all (GiB).")
    ] = 2.0,
    connections: Annotated[
        int, typer.Option(min=1, help="Connections at once; more are answered 503.")
    ] = 4096,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="Answer /metrics to other machines, too.")
    ] = False,
) -> None:
    """Serve an exchange over HTTP until Ctrl-C or SIGTERM. Sites only call out to it.

    Every request is signed; a member can write only as itself. The relay has
    no key and is not trusted. Beyond this machine use TLS: --certificate, or a
    proxy in front.
    """
    need("relay")
    if (folder is None) == (database is None):
        raise InputError("say where objects are kept", field="FOLDER or --database", allowed="one")
    if (certificate is None) != (key is None):
        raise InputError("TLS needs both", field="--certificate and --key")
    for path in (certificate, key):
        if path is not None and not path.is_file():
            raise InputError("there is no such file", where=str(path))
    from fedflow.relay.limits import Limits
    from fedflow.relay.objects import Objects
    from fedflow.relay.postgres import PostgresStore
    from fedflow.relay.server import Listening, log_to_stderr, make_server, read_roster
    from fedflow.relay.store import FolderStore, Store

    pinned = _public_key(authority)
    started_with = None if roster is None else read_roster(roster, pinned)
    store: Store
    if folder is not None:
        try:
            store = FolderStore(folder)
        except OSError as error:
            raise InputError(f"cannot be used: {error.strerror}", where=str(folder)) from None
    else:
        if not (database or "").startswith(("postgresql://", "postgres://")):
            raise InputError("this is no database", field="--database", allowed="postgresql://…")
        store = PostgresStore(database or "")
    log_to_stderr()
    console = Console(stderr=True)
    limits = Limits(
        site_bytes=int(site_gib * 2**30),
        site_rate=site_rate,
        memory_bytes=int(memory_gib * 2**30),
    )
    make_server(
        Objects(store, pinned, limits),
        Listening(host, port, certificate, key, tuple(proxy or ()), connections, open_metrics),
        roster=started_with,
        keep_days=keep_days,
        say=lambda line: console.print(line, highlight=False, soft_wrap=True),
    ).run()


@app.command(
    epilog="Example: fedflow exchange copy --job trial-7 https://relay.example ./audit/exchange"
    " --identity ./berlin"
)
def copy(
    source: Annotated[str, typer.Argument(help="The exchange to read: folder, s3://…, https://…")],
    target: Annotated[str, typer.Argument(help="Where to write it: a folder, say.")],
    job: Annotated[str, typer.Option(help="The job.")],
    identity: Annotated[
        Path | None,
        typer.Option(help="Whose key signs requests to a relay: a site's folder, or a key file."),
    ] = None,
) -> None:
    """Mirror one job: for an offline audit, or to keep it when a relay removes it.

    `fedflow audit verify FOLDER` looks for the exchange in FOLDER/exchange. What
    is there already stays as it is, so a copy that was interrupted goes on when
    it is started again.
    """
    key = None if identity is None else _identity(identity)
    try:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task(f"looking into {job}", total=None)

            def tell(done: int, total: int) -> None:
                progress.update(task, description=f"copying {job}", completed=done, total=total)

            result = copy_job(open_exchange(source, key), open_exchange(target, key), job, tell)
    except OSError as error:
        raise InputError(f"an exchange is not reachable: {error}; start the copy again") from None
    console = Console()
    console.print(
        f"{result.objects} objects, {result.bytes:,} bytes, {result.skipped} of them there before"
    )
    for name, why in result.left_out:
        console.print(f"left out: {name}: {why}", highlight=False, soft_wrap=True)


def _public_key(text: str) -> PublicKey:
    try:
        return PublicKey.from_hex(text)
    except Violation as error:
        raise InputError(
            "is needed, or is not a key", field="--authority", allowed=error.message
        ) from None


def _identity(path: Path) -> Identity:
    if (path / "site.toml").is_file():
        from fedflow.site.config import open_site

        return open_site(path).identity
    return Identity.load(path / "identity.pem" if path.is_dir() else path)
