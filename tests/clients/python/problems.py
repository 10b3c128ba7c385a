"""Provokes every problem that a caller can meet and a test can cause, and checks what the service says about it."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import sandbox
from dojo_payment_links.api.operations import (
    cancel_payment_link,
    refund_payment_link,
    reverse_payment_link,
    send_payment_link_receipt,
)
from dojo_payment_links.api.payment_links import create_payment_link, get_payment_link, list_payment_links
from dojo_payment_links.api.webhooks import receive_webhook
from dojo_payment_links.models import (
    ActionKind,
    Currency,
    Fault,
    Money,
    NewPaymentLink,
    NewReceipt,
    NewRefund,
    PaymentLink,
    PerformedOperation,
    Problem,
    ProblemType,
    ReceiveWebhookBody,
    Status,
)
from dojo_payment_links.types import UNSET, Response, Unset
from service import ApiError, connect, send, unwrap

client = connect()
reader = connect(os.environ["READ_KEY"])


def new_key() -> str:
    return str(uuid4())


def pounds(value: int) -> Money:
    return Money(value=value, currency_code=Currency.GBP)


def create(
    key: str | None = None, reference: str = "Problems", value: int = 1000, prefer: str | Unset = UNSET
) -> Response[PaymentLink | Problem]:
    body = NewPaymentLink(amount=pounds(value), reference=reference)
    return create_payment_link.sync_detailed(
        client=client, body=body, idempotency_key=key or new_key(), prefer=prefer
    )


def refund(link_id: str, value: int, key: str | None = None) -> Response[PerformedOperation | Problem]:
    body = NewRefund(amount=pounds(value))
    return refund_payment_link.sync_detailed(
        link_id, client=client, body=body, idempotency_key=key or new_key()
    )


def paid_link() -> str:
    link = unwrap(create())
    sandbox.pay(link.payment_intent_id)
    for _ in range(120):
        read: PaymentLink = unwrap(get_payment_link.sync_detailed(link.id, client=client))
        if read.status == Status.CAPTURED and read.confirmed:
            return link.id
        time.sleep(0.5)
    raise TimeoutError(f"{link.id} was not paid in time")


def expect(kind: ProblemType, status: int, response: Response[Any]) -> ApiError:
    """Checks that the response reports this problem."""
    try:
        unwrap(response)
    except ApiError as error:
        problem = error.problem
        assert problem.type_ == kind, f"expected {kind}, not {error}"
        assert problem.status == response.status_code == status
        assert problem.request_id == response.headers["x-request-id"]
        print(f"  {status} {problem.type_}: {problem.detail}")
        return error
    raise AssertionError(f"expected {kind}, but the request succeeded")


def raw(method: str, path: str, content: str = "", content_type: str = "application/json") -> Response[Any]:
    """A request that the typed client can't send."""
    http = client.get_httpx_client()
    response = http.request(method, path, content=content, headers={"Content-Type": content_type})
    problem = Problem.from_dict(response.json())
    return Response(HTTPStatus(response.status_code), response.content, response.headers, problem)


def requests() -> None:
    expect(ProblemType.MALFORMED_JSON, 400, raw("POST", "/v1/payment-links", "{"))
    expect(ProblemType.UNSUPPORTED_MEDIA_TYPE, 415, raw("POST", "/v1/payment-links", "{}", "text/plain"))
    expect(ProblemType.BODY_TOO_LARGE, 413, create(reference="x" * 300_000))
    not_allowed = expect(ProblemType.METHOD_NOT_ALLOWED, 405, raw("DELETE", "/v1/payment-links"))
    assert "POST" in not_allowed.headers["allow"]

    invalid = expect(ProblemType.INVALID_REQUEST, 422, create(reference="", value=0))
    assert isinstance(invalid.problem.errors, list)
    assert all(isinstance(error, Fault) for error in invalid.problem.errors)
    assert sorted(error.pointer for error in invalid.problem.errors) == ["/amount/value", "/reference"]

    unknown = "plink_01kaz8v4wce7q8m6s5gq9nq2fd"
    expect(ProblemType.NOT_FOUND, 404, get_payment_link.sync_detailed(unknown, client=client))

    key = new_key()
    send(lambda: create(key))
    expect(ProblemType.IDEMPOTENCY_KEY_REUSED, 422, create(key, reference="Another"))


def keys() -> None:
    stranger = connect("dpl_00000000000000000000000000000000")
    unauthenticated = expect(ProblemType.UNAUTHENTICATED, 401, list_payment_links.sync_detailed(client=stranger))
    assert unauthenticated.headers["www-authenticate"] == "Bearer"

    body = NewPaymentLink(amount=pounds(1000), reference="Problems")
    forbidden = expect(ProblemType.FORBIDDEN, 403, create_payment_link.sync_detailed(client=reader, body=body))
    assert "links:write" in forbidden.problem.detail

    unsigned = receive_webhook.sync_detailed(
        client=client, body=ReceiveWebhookBody(), dojo_signature="sha256=00"
    )
    expect(ProblemType.BAD_SIGNATURE, 401, unsigned)


def rates() -> None:
    rate = int(os.environ.get("CLIENT_RATE", "200"))
    if rate > 100:
        print("  skipped rate-limited: set CLIENT_RATE to the service's, at most 100")
        return
    # The limit is per client, so this burst doesn't affect the others.
    with ThreadPoolExecutor(16) as pool:
        burst = pool.map(
            lambda _: list_payment_links.sync_detailed(client=reader, limit=1), range(4 * rate)
        )
        responses = list(burst)
    rejected = [response for response in responses if response.status_code == 429]
    assert rejected, "some of the requests exceed the limit"
    limited = expect(ProblemType.RATE_LIMITED, 429, rejected[0])
    assert limited.retryable and limited.retry_after >= 1


def states() -> None:
    link_id = paid_link()
    too_much = expect(ProblemType.NOT_POSSIBLE, 409, refund(link_id, 1001))
    assert too_much.problem.remaining == pounds(1000)
    assert not too_much.retryable

    cancel = cancel_payment_link.sync_detailed(link_id, client=client, idempotency_key=new_key())
    captured = expect(ProblemType.NOT_POSSIBLE, 409, cancel)
    assert isinstance(captured.problem.allowed_actions, list)
    assert ActionKind.REFUND in captured.problem.allowed_actions


def dojo() -> None:
    sandbox.fail_next("create", kind="status", status=422)
    expect(ProblemType.REJECTED_BY_DOJO, 422, create())
    sandbox.fail_next("create", kind="status", status=401)
    expect(ProblemType.DOJO_KEY_REJECTED, 502, create())
    sandbox.fail_next("create", kind="status", status=404)
    expect(ProblemType.DOJO_MISROUTED, 502, create())

    # Dojo asks for a longer wait than a request can take, so the service passes it on.
    sandbox.fail_next("create", kind="status", status=429, retryAfter=60)
    not_reached = expect(ProblemType.DOJO_NOT_REACHED, 503, create())
    assert not_reached.retryable and not_reached.retry_after > 1

    link_id = paid_link()
    sandbox.fail_next("refund", kind="status", status=400)
    expect(ProblemType.REJECTED_BY_DOJO, 409, refund(link_id, 100))


def lost_responses() -> None:
    key = new_key()
    sandbox.fail_next("create", kind="cutAfter")
    unknown = expect(ProblemType.OUTCOME_UNKNOWN, 504, create(key))
    # The same request with the same key gets the link that the lost response was about.
    link = send(lambda: create(key), attempts=20)
    assert link.id == unknown.problem.payment_link_id

    # `Prefer` asks the service to wait for the outcome.
    sandbox.fail_next("create", kind="cutAfter")
    waited = create(prefer="wait=20")
    assert waited.status_code == 201
    assert waited.headers["preference-applied"] == "wait=20"

    # The customer pays a link while its cancellation gets lost.
    cancel_key = new_key()

    def cancel() -> Response[PerformedOperation | Problem]:
        return cancel_payment_link.sync_detailed(link.id, client=client, idempotency_key=cancel_key)

    sandbox.fail_next("cancel", kind="cutBefore", count=3)
    expect(ProblemType.OUTCOME_UNKNOWN, 504, cancel())
    sandbox.pay(link.payment_intent_id)
    expect(ProblemType.NOT_DONE, 409, outcome(cancel))

    # Nothing at Dojo shows whether a receipt was sent.
    receipt_key = new_key()
    emails = NewReceipt(emails=["customer@example.com"])

    def receipt() -> Response[PerformedOperation | Problem]:
        return send_payment_link_receipt.sync_detailed(
            link.id, client=client, body=emails, idempotency_key=receipt_key
        )

    sandbox.fail_next("receipt", kind="cutAfter")
    expect(ProblemType.OUTCOME_UNKNOWN, 504, receipt())
    expect(ProblemType.OUTCOME_UNCONFIRMED, 409, outcome(receipt))


def outcome(
    request: Callable[[], Response[PerformedOperation | Problem]],
) -> Response[PerformedOperation | Problem]:
    """Repeats a request until its outcome is known."""
    for _ in range(60):
        response = request()
        if "retry-after" not in response.headers:
            return response
        time.sleep(1)
    raise TimeoutError("the outcome stays unknown")


def concurrency() -> None:
    link_id = paid_link()
    key = new_key()
    sandbox.fail_next("refund", kind="latency", latencyMs=3000)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(refund, link_id, 400, key)
        time.sleep(1)
        second = expect(ProblemType.REQUEST_IN_PROGRESS, 409, refund(link_id, 400, key))
        assert second.retryable and second.problem.operation_id
        reversal = reverse_payment_link.sync_detailed(link_id, client=client, idempotency_key=new_key())
        expect(ProblemType.OPERATION_IN_PROGRESS, 409, reversal)
        done = unwrap(first.result())
    replayed = refund(link_id, 400, key)
    assert replayed.headers["idempotent-replayed"] == "true"
    assert unwrap(replayed).operation.id == done.operation.id

    # Dojo's figure may not include the refund yet, so 200 is certain to be left, and 300 will be known later.
    unclear = expect(ProblemType.REFUNDABLE_AMOUNT_UNCLEAR, 409, refund(link_id, 300))
    assert unclear.retryable


def main() -> None:
    groups: list[Callable[[], None]] = [requests, keys, rates, states, dojo, lost_responses, concurrency]
    try:
        for group in groups:
            group()
    finally:
        sandbox.clear_faults()


if __name__ == "__main__":
    main()
