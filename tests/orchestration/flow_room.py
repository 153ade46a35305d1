"""A job's room whose coordinator has a folder on disk, as the flows find it."""

from __future__ import annotations

from fedflow.coordinator.settings import open_coordinator


def coordinator_folder(room, tmp_path):
    """Write the coordinator's folder of ``room``, whose exchange is ``tmp_path/exchange``."""
    path = tmp_path / "coordinator-folder"
    path.mkdir()
    room.coordinator_identity.save(path / "identity.pem")
    (path / "coordinator.toml").write_text(
        f'exchange = "{tmp_path / "exchange"}"\nauthority = "{room.authority.public.hex()}"\n'
        "poll_seconds = 0.03\nmax_attempts = 1\n"
    )
    open_coordinator(path)
    return path
