"""The HTTP relay: an exchange for sites that can only call out, and must prove who they are.

It is as untrusted as every exchange: what keeps a federation safe are the signatures inside the
objects. What the relay adds is order: a member can write only as itself, so none can fill another's
places, and no stranger can write or read anything.
"""
