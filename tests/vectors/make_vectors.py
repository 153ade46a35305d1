"""Writes crypto.json and secagg.json beside this file: ``python tests/vectors/make_vectors.py``.

Derived values are computed here a second time, from the published layout, with the standard library
and single AES blocks, and not with the functions under test. Only the messages of ``secagg.json``
come from the implementation: they freeze the wire format, and every derived value inside them is
compared with this file's own computation before it is written.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

HERE = Path(__file__).parent
PRIME = 2**256 + 297


def u16(n: int) -> bytes:
    return n.to_bytes(2, "big")


def u32(n: int) -> bytes:
    return n.to_bytes(4, "big")


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of output."""
    prk = hmac.digest(salt, secret, "sha256")
    return hmac.digest(prk, info + b"\1", "sha256")


def stream(key: bytes, blocks: range) -> bytes:
    block = Cipher(AES(key), ECB()).encryptor()
    return b"".join(block.update(i.to_bytes(16, "big")) for i in blocks)


def words(key: bytes, count: int, start: int = 0) -> list[int]:
    data = stream(key, range(start // 4, start // 4 + -(-count // 4)))
    return [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(count)]


def agree(private: bytes, public: bytes) -> bytes:
    peer = X25519PublicKey.from_public_bytes(public)
    return X25519PrivateKey.from_private_bytes(private).exchange(peer)


def shares(secret: bytes, coefficients: list[int], points: list[int]) -> list[str]:
    """Share of x: secret + c1 x + c2 x^2 + ..., computed power by power."""
    out = []
    for x in points:
        y = int.from_bytes(secret, "big")
        for power, c in enumerate(coefficients, 1):
            y += c * x**power
        out.append((y % PRIME).to_bytes(33, "big").hex())
    return out


def merkle(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there: split at the largest power of two below n."""
    if len(leaves) == 1:
        return sha(b"\0", leaves[0])
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha(b"\1", merkle(leaves[:k]), merkle(leaves[k:]))


def crypto() -> dict[str, list[dict[str, object]]]:
    key, ctx = sha(b"key"), sha(b"ctx")
    seed = sha(b"csprng")
    # The csprng's stream gives the polynomial: 48 bytes a coefficient, highest power first.
    noise = stream(seed, range(6))
    drawn = [int.from_bytes(noise[i : i + 48], "big") % PRIME for i in (0, 48)][::-1]
    split = shares(key, drawn, [1, 2, 5, 65536])
    sealed = ChaCha20Poly1305(key).encrypt(bytes(12), b"p" * 66, b"associated")
    signer = Ed25519PrivateKey.from_private_bytes(sha(b"signer"))
    public = signer.public_key().public_bytes_raw()
    signature = signer.sign(b"fedflow/1 order\0body")
    leaves = [b"leaf %d" % i for i in range(7)]
    pair = sha(b"a"), X25519PrivateKey.from_private_bytes(sha(b"b")).public_key()
    return {
        "identity": [
            {"public": public.hex(), "label": "order", "body": b"body".hex()}
            | {"signature": signature.hex(), "private": sha(b"signer").hex()},
        ],
        "identity_bad_label": [
            {"public": public.hex(), "label": "orders", "body": b"body".hex()}
            | {"signature": signature.hex(), "code": "bad-signature"},
        ],
        "csprng": [{"seed": seed.hex(), "stream": stream(seed, range(4)).hex()}],
        "derive": [
            {"label": label, "sites": sites, "secret": key.hex(), "context": ctx.hex()}
            | {"key": hkdf(key, ctx, b"fedflow/1 " + label.encode() + b"".join(map(u16, at))).hex()}
            for label, sites, at in (
                ("self-mask", [3], [3]),
                ("self-mask", [65535], [65535]),
                ("pair-mask", [2, 3], [2, 3]),
                ("pair-mask", [3, 2], [2, 3]),
                ("share-aead", [2, 3], [2, 3]),
                ("share-aead", [3, 2], [3, 2]),
            )
        ],
        "agreement": [
            {  # RFC 7748 section 5.2, first test vector, as printed there.
                "private": "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
                "peer": "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
                "shared": "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
            },
            {"private": pair[0].hex(), "peer": pair[1].public_bytes_raw().hex()}
            | {"shared": agree(pair[0], pair[1].public_bytes_raw()).hex()},
        ],
        "agreement_bad_low_order": [
            {"private": pair[0].hex(), "peer": bytes(32).hex(), "code": "bad-key"}
        ],
        "masks": [
            {"key": key.hex(), "start": start, "words": words(key, 9, start)}
            for start in (0, 4, 65536, (1 << 34) - 12)
        ],
        "shamir": [
            {"secret": key.hex(), "seed": seed.hex(), "points": [1, 2, 5, 65536]}
            | {"threshold": 3, "shares": split},
        ],
        "shamir_bad_share": [
            {"share": "ff" * 33, "code": "bad-share"},
            {"share": PRIME.to_bytes(33, "big").hex(), "code": "bad-share"},
            {"share": split[0][2:], "code": "bad-share"},
        ],
        "aead": [
            {"key": key.hex(), "plaintext": (b"p" * 66).hex(), "associated": b"associated".hex()}
            | {"sealed": sealed.hex()}
        ],
        "aead_bad_tag": [
            {"key": key.hex(), "associated": b"associated".hex(), "code": "bad-ciphertext"}
            | {"sealed": sealed[:-1].hex() + "00"},
            {"key": key.hex(), "associated": b"other".hex(), "code": "bad-ciphertext"}
            | {"sealed": sealed.hex()},
        ],
        "merkle": [
            {"leaves": [leaf.hex() for leaf in leaves[:n]], "root": merkle(leaves[:n]).hex()}
            for n in range(1, 8)
        ],
    }


def secagg() -> dict[str, object]:
    """One deterministic round: sites 1, 2, 4, 7; site 4 drops after dealing; site 7 at the end."""
    sys.path.insert(0, str(HERE.parent / "secagg"))
    import vector_round

    round_ = vector_round.play()
    ctx_of_round = sha(
        b"fedflow/1 round\0", b"m" * 32, u32(3), u32(1), b"\1", b"w" * 32, b"p" * 32, b"o" * 32
    )
    secret = {}
    for site in vector_round.SITES:
        drawn = stream(sha(b"vector site %d" % site), range(6))
        clamp = bytes((drawn[0] & 248, *drawn[1:31], drawn[31] & 127 | 64))
        secret[site] = clamp, drawn[64:96]
    adverts = [round_.sent["advert", site] for site in vector_round.SITES]
    # A roster message: type 22, version 1, count, adverts with their own headers.
    roster = b"\x16\1" + u32(len(adverts)) + b"".join(adverts)
    assert roster == round_.downs["roster"]
    ctx = sha(b"fedflow/1 ctx\0", ctx_of_round, roster)
    mask_public = {site: adverts[i][5:37] for i, site in enumerate(vector_round.SITES)}
    keys, masked = {}, {}
    for u in vector_round.SITES:
        keys[f"self {u}"] = hkdf(secret[u][1], ctx, b"fedflow/1 self-mask" + u16(u))
        for v in vector_round.SITES:
            if u < v:
                shared = agree(secret[u][0], mask_public[v])
                info = b"fedflow/1 pair-mask" + u16(u) + u16(v)
                keys[f"pair {u} {v}"] = hkdf(shared, ctx, info)
    survivors = [1, 2, 7]
    for u in survivors:
        y = [
            x + m for x, m in zip(vector_round.vector(u), words(keys[f"self {u}"], 5), strict=True)
        ]
        for v in vector_round.SITES:
            if v != u:
                mask = words(keys[f"pair {min(u, v)} {max(u, v)}"], 5)
                y = [a + m if v > u else a - m for a, m in zip(y, mask, strict=True)]
        masked[u] = b"".join((a % 2**32).to_bytes(4, "little") for a in y)
        assert masked[u] in round_.sent["masked", u]
    total = [sum(int(vector_round.vector(u)[i]) for u in survivors) % 2**32 for i in range(5)]
    return {
        "round_ctx": ctx_of_round.hex(),
        "context": ctx.hex(),
        "commitments": {
            str(u): sha(b"fedflow/1 b\0", ctx, u16(u), secret[u][1]).hex()
            for u in vector_round.SITES
        },
        "delivered_hash": sha(b"fedflow/1 delivered\0", ctx, b"\x0f").hex(),
        "survivors_hash": sha(b"fedflow/1 survivors\0", ctx, b"\x0b").hex(),
        "keys": {name: key.hex() for name, key in keys.items()},
        "masked": {str(u): data.hex() for u, data in masked.items()},
        "sum": total,
        "messages": {f"{leg} {site}": data.hex() for (leg, site), data in round_.sent.items()},
        "downs": {
            **{k: v.hex() for k, v in round_.downs.items() if isinstance(v, bytes)},
            **{f"delivery {s}": v.hex() for s, v in round_.downs["delivery"].items()},
        },
        "transcript": round_.outcome.transcript.encode().hex(),
        "transcript_digest": sha(
            b"fedflow/1 transcript\0", round_.outcome.transcript.encode()
        ).hex(),
        "site_bad": vector_round.bad_for_a_site(round_),
        "server_bad": vector_round.bad_for_the_server(round_),
    }


def main() -> None:
    for name, content in (("crypto", crypto()), ("secagg", secagg())):
        path = HERE / f"{name}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
