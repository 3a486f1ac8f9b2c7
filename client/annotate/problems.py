"""What goes wrong in a request, as a code that the page has a sentence for. `web/` makes HTTP answers of it."""

from __future__ import annotations

from typing import ClassVar


class Problem(Exception):
    """A request that is not done. `code` names the case, `field` what it is about."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "BAD_REQUEST"

    def __init__(self, detail: str = "", *, code: str = "", field: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(detail or code or self.code)
        self.name = code or self.code
        self.detail = detail  # for logs and tests: never a secret
        self.field = field
        self.retry_after_s = retry_after_s


class SignIn(Problem):
    status, code = 401, "SIGN_IN"


class Forbidden(Problem):
    status, code = 403, "FORBIDDEN"


class NotThere(Problem):
    status, code = 404, "NOT_FOUND"


class Clash(Problem):
    """What is there already says otherwise: ALREADY_ANSWERED, OTHER_BODY, DRAFT_CONFLICT, TAB_MOVED, VOIDED."""

    status, code = 409, "CLASH"


class TooLarge(Problem):
    status, code = 413, "TOO_LARGE"


class Invalid(Problem):
    """A field's value is wrong; `field` names it."""

    status, code = 422, "INVALID"


class TooMany(Problem):
    status, code = 429, "TOO_MANY"


class ModelDown(Problem):
    status, code = 503, "MODEL_DOWN"
