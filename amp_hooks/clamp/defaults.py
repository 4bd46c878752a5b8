"""HeadClampHook's defaults that pre-flight and report reason with as well."""

from __future__ import annotations

# A sigmoid is 0 or 1 to FP32 precision beyond about 17, a softmax beyond about 104.
LIMIT = 100.0
TRIGGER = 1000.0  # 6 doublings below the largest FP16 number
