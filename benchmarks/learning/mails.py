"""Spam or ham at five sites by LoRA on a frozen encoder, privately: how well, and how few bytes.

Every site hosts some mailing lists (:mod:`benchmarks.data.mails`). Noise is summed and each mail is
protected; sums go through masks. The encoder's frozen layers are run once per mail.
"""

from __future__ import annotations
