"""The command ``fedflow``: reads arguments, calls the rooms, prints. No logic of its own."""
