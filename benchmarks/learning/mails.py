"""Spam or ham at five sites by LoRA on a frozen encoder, privately: how well, and how few bytes.

Every site hosts some mailing lists (:mod:`benchmarks.data.mails`). Noise is summed and each mail is
protected; sums go through masks. The encoder's frozen layers are run once per mail.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.data.mails import dealt, load_mails
from benchmarks.data.sites import write_mails
from benchmarks.figures import Row, say
from benchmarks.utility.report import Amount
from fedflow.crypto.csprng import Csprng
from fedflow.learning.plan import load_plan
