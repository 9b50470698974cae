"""Every error that this program raises on purpose, in one family.

    RecommenderError          the family; anything outside it is a bug
    ├── InvalidInputError     what the caller gave is wrong: change it
    ├── ArtifactError         a stored file is missing, damaged or from another run: make it again
    ├── NotReadyError         nothing is served yet: publish a catalog, or wait
    └── OverloadedError       too much at once: come back later

Messages name the field or file, the value, and the way out.
"""


class RecommenderError(Exception):
    """Base of the family."""


class InvalidInputError(RecommenderError):
    """A value is unusable; `field` names it."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ArtifactError(RecommenderError):
    """A stored artifact is missing, truncated, altered, or does not fit the others."""


class NotReadyError(RecommenderError):
    """The service has nothing to answer with yet."""


class OverloadedError(RecommenderError):
    """The line is full; `retry_after_s` is when to come back."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
