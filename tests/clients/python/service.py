"""The client of the service, and how to send a request so that it succeeds unless it can't."""

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import httpx

from dojo_payment_links import AuthenticatedClient
from dojo_payment_links.models import Problem, ProblemType
from dojo_payment_links.types import Response

T = TypeVar("T")


class ApiError(Exception):
    """A response that reports a problem."""

    def __init__(self, problem: Problem, headers: Mapping[str, str]) -> None:
        super().__init__(f"{problem.type_}: {problem.detail} (request {problem.request_id})")
        self.problem = problem
        self.headers = headers

    @property
    def retryable(self) -> bool:
        """Whether the same request, with the same Idempotency-Key, may succeed later."""
        return (
            self.problem.status == 429
            or self.problem.status >= 500
            or "retry-after" in self.headers
            or self.problem.type_ == ProblemType.BODY_INCOMPLETE
        )

    @property
    def retry_after(self) -> int:
        """After how many seconds to send the request again."""
        return int(self.headers.get("retry-after", "1"))


def connect(api_key: str | None = None) -> AuthenticatedClient:
    return AuthenticatedClient(
        base_url=os.environ["BASE_URL"],
        token=api_key or os.environ["API_KEY"],
        timeout=httpx.Timeout(40),
    )


def unwrap(response: Response[T | Problem]) -> T:
    """The data of a response. Raises an ApiError if the response reports a problem."""
    if isinstance(response.parsed, Problem):
        raise ApiError(response.parsed, response.headers)
    if response.parsed is None:
        # The document doesn't list this status for the call.
        raise ApiError(Problem.from_dict(json.loads(response.content)), response.headers)
    return response.parsed


def send(request: Callable[[], Response[T | Problem]], attempts: int = 5) -> T:
    """Sends a request again until it succeeds or a retry won't help.

    The request must send the same Idempotency-Key each time, or a lost response makes it take effect twice.
    """
    for attempt in range(1, attempts + 1):
        wait = 1
        try:
            return unwrap(request())
        except ApiError as error:
            if not error.retryable or attempt == attempts:
                raise
            wait = error.retry_after
        except httpx.TransportError:
            if attempt == attempts:
                raise
        time.sleep(wait)
    raise ValueError("attempts must be at least 1")
