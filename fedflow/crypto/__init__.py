"""Keys and keystreams: identities, key agreement, key derivation, masks and secret sharing.

Nothing here knows the order of any protocol. Secrets have a redacted ``repr`` and refuse to be
pickled. Python cannot wipe memory and its integer arithmetic is not constant-time, so every secret
here except an :class:`~fedflow.crypto.identity.Identity` is meant to live for one round only.
"""
