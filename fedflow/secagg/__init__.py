"""Secure aggregation: sites learn nothing new, the server learns one sum.

Double masking after Bonawitz et al., CCS 2017, on the complete graph, hardened so that sites need
not trust the server: signed keys, encrypted dealer-signed shares, one signed survivor set, and
thresholds from each site's own policy. Client and server are state machines without I/O: bytes in,
bytes out.
"""
