"""docs/reference/errors.md: the tree of errors that the client raises, from the docstring and the classes of client/errors.py."""

from __future__ import annotations

import inspect
import re

from polyhead.client import errors
from tests.docs.markdown import code, plain, table

LINE = re.compile(r"^(│? *)[├└]── (\w+) +(.+?) {2,}(.+)$", re.MULTILINE)
TEXT = """# Errors

Every error of a call is a `polyhead.client.PolyheadError`. Its message says what happened, then the value, then perhaps a
`hint:` line. An argument of a wrong **type** is a `TypeError` before anything is sent.

| attribute | meaning |
|---|---|
| `code` | name of the gRPC status code |
| `field` | path of the field at fault, such as `arms[0].sampling.top_p`; `violations` has all of them |
| `reason` | machine-readable name of the case, such as `GENERATION_MISMATCH` |
| `retry_after_s` | seconds until a retry is worth it; `None`: it is not |
| `metadata` | further facts, such as the current generation |

"""
END = """
Callers in other languages find the same in `google.rpc.Status` details: `ErrorInfo`, `BadRequest`, `PreconditionFailure` and `RetryInfo`.

A sample or an item that fails alone raises nothing: its `finish_reason` is `aborted` or `failed`, or its `error` says why.

`python -m tests.docs.reference` writes this page anew.
"""


def page() -> str:
    found = LINE.findall(errors.__doc__ or "")
    rows = [(code(name), code(getattr(errors, name).code), plain(meaning), plain(where)) for _, name, meaning, where in found]
    classes = {name for name in errors.__all__ if inspect.isclass(getattr(errors, name))} - {"PolyheadError", "FieldViolation"}
    assert {name for _, name, _, _ in found} == classes, "the tree in client/errors.py and its classes"
    return TEXT + table(("error", "gRPC code", "meaning", "raised by"), rows) + END
