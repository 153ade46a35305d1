"""Invented but realistic facts of a six-site job."""

from typing import Any


def sample_facts(rounds: int = 14) -> dict[str, Any]:
    labels = [f"site-{i}" for i in range(1, 7)]
    curve = [
        0.563,
        0.611,
        0.642,
        0.659,
        0.668,
        0.675,
        0.679,
        0.683,
        0.685,
        0.687,
        0.688,
        0.690,
        0.691,
        0.691,
    ]
    spent = dict.fromkeys(labels, 0.0)
    listed = []
    for i in range(rounds):
        dropped = ["site-4"] if i == 4 else []
        refused = {"site-6": "budget exhausted"} if i == rounds - 1 else {}
        here = [n for n in labels if n not in dropped and n not in refused]
        for n in labels:
            if n not in refused:
                step = 2.84 * ((i + 1) ** 0.62 - i**0.62) / rounds**0.62
                spent[n] += step * (1.0 if n not in dropped else 1.35)
        listed.append(
            {
                "number": i + 1,
                "sites": here,
                "dropped": dropped,
                "recovered": dropped,
                "refused": refused,
                "seconds": 2.9 + 0.13 * (i % 4) + (1.9 if dropped else 0),
                "training_seconds": 1.7 + 0.07 * (i % 3),
                "score": curve[i % 14] if i % 2 == 1 or i == 0 else None,
                "score_stderr": 0.008 if i % 2 == 1 or i == 0 else None,
                "epsilon": dict(spent),
                "bytes": {
                    n: (13240 if n not in dropped else 4180) for n in labels if n not in refused
                },
                "aborted": False,
                "reason": "",
            }
        )
    return {
        "job": "randhie-demo",
        "plan": {
            "plan": {"name": "randhie-demo", "workload": "randhie", "rounds": rounds},
            "cohort": {"minimum": 4, "colluders": 1},
            "strategy": {"name": "fedavg", "server_learning_rate": 1.0},
            "training": {
                "local_steps": 8,
                "learning_rate": 0.5,
                "optimizer": "sgd",
                "momentum": 0.0,
            },
            "privacy": {
                "unit": "person",
                "clipping_norm": 1.0,
                "noise_multiplier": 1.4,
                "sample_rate": 0.12,
                "delta": 1e-5,
            },
            "secure_aggregation": {"bits": 32, "value_range": 8.0},
        },
        "sites": [
            {"index": i, "label": n, "fingerprint": f"3f{i}a 9c1{i} 77e0 b{i}d4"}
            for i, n in enumerate(labels)
        ],
        "auc_global": 0.691,
        "auc_alone_mean": 0.672,
        "auc_alone": dict(zip(labels, [0.664, 0.681, 0.669, 0.655, 0.694, 0.671], strict=True)),
        "auc_pooled": 0.700,
        "auc_federated_no_privacy": 0.698,
        "epsilon_spent": dict(spent),
        "epsilon_pld": {n: v * 0.88 for n, v in spent.items()},
        "epsilon_left": {n: 3.0 - v for n, v in spent.items()},
        "epsilon_budget": 3.0,
        "delta": 1e-5,
        "rounds": listed,
        "audit_ok": True,
        "audit": {
            "ok": True,
            "checks": [
                {"name": "signatures of manifest and orders", "count": 35, "ok": True},
                {"name": "sums recomputed from masked vectors", "count": 21, "ok": True},
                {"name": "models recomputed", "count": 14, "ok": True},
                {"name": "ledger entries", "count": 252, "ok": True},
                {"name": "ε recomputed with a second accountant", "count": 12, "ok": True},
            ],
            "findings": [
                {
                    "severity": "note",
                    "code": "charge-without-release",
                    "where": "ledger of site-4, entry 11",
                    "sentence": "site-4 was charged for round 5, in which it dropped out.",
                }
            ],
        },
        "report": "/tmp/fedflow-demo/report.html",
        "folder": "/tmp/fedflow-demo",
        "prefect_url": "http://127.0.0.1:41877",
        "machine": {"cpu": "AMD EPYC", "cores": 2, "python": "3.11.9"},
        "seconds_total": 96.4,
    }
