"""Takes a payment by link, refunds half of it, and reads what happened."""

import time
from collections.abc import Iterator
from uuid import uuid4

import sandbox
from dojo_payment_links.api.operations import (
    get_operation,
    list_operations,
    list_payment_link_operations,
    refund_payment_link,
)
from dojo_payment_links.api.payment_links import (
    create_payment_link,
    get_payment_link,
    list_payment_link_events,
    list_payment_links,
)
from dojo_payment_links.models import (
    Currency,
    Metadata,
    Money,
    NewPaymentLink,
    NewRefund,
    OperationStatus,
    PaymentLink,
    RefundOperation,
    Status,
)
from dojo_payment_links.types import UNSET
from service import connect, send

client = connect()


def create_link(key: str, reference: str, value: int) -> PaymentLink:
    """Requests a link. However often this is called with the same key, there is one link."""
    metadata = Metadata.from_dict({"order": reference, "value": str(value)})
    body = NewPaymentLink(
        amount=Money(value=value, currency_code=Currency.GBP), reference=reference, metadata=metadata
    )
    return send(lambda: create_payment_link.sync_detailed(client=client, body=body, idempotency_key=key))


def until_paid(link_id: str) -> PaymentLink:
    """Waits until the link is paid."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        link: PaymentLink = send(lambda: get_payment_link.sync_detailed(link_id, client=client))
        # A webhook alone changes the status. `confirmed` means that Dojo reported it to the service, too.
        if link.status == Status.CAPTURED and link.confirmed:
            return link
        time.sleep(0.5)
    raise TimeoutError(f"{link_id} was not paid in time")


def links(reference: str) -> Iterator[PaymentLink]:
    """Every link with this reference, newest first."""
    after: str | None = None
    while True:
        page = send(
            lambda: list_payment_links.sync_detailed(
                client=client, reference=reference, limit=2, after=after or UNSET
            )
        )
        yield from page.data
        if not page.has_more:
            return
        after = page.after


def main() -> None:
    order = f"order-{uuid4()}"

    link = create_link(f"{order}-1", order, 2450)
    assert link.status == Status.CREATED
    assert link.url, "the URL to send to the customer"
    repeated = create_link(f"{order}-1", order, 2450)
    assert repeated.id == link.id, "a retry gets the same link"
    print(f"  created    {link.id} {link.url}")

    sandbox.pay(link.payment_intent_id)
    paid = until_paid(link.id)
    assert paid.captured_amount.value == 2450
    assert paid.payment
    print(f"  paid       {paid.captured_amount.value} by card …{paid.payment.last4}")

    for n in range(2, 6):
        create_link(f"{order}-{n}", order, 100 * n)
    listed = list(links(order))
    assert [link.amount.value for link in listed] == [500, 400, 300, 200, 2450]
    print(f"  listed     {len(listed)} links in pages of 2")

    entries = [f"order:{order}", "value:400"]
    by_metadata = send(lambda: list_payment_links.sync_detailed(client=client, metadata=entries)).data
    assert [link.amount.value for link in by_metadata] == [400]

    half = NewRefund(amount=Money(value=1225, currency_code=Currency.GBP), refund_reason="Returned goods")
    refunded = send(
        lambda: refund_payment_link.sync_detailed(
            link.id, client=client, body=half, idempotency_key=f"{order}-refund"
        )
    )
    operation = refunded.operation
    assert operation.status == OperationStatus.SUCCEEDED
    assert refunded.refundable_amount.value == 1225
    left = refunded.refundable_amount.value
    print(f"  refunded   {operation.id}: {refunded.refunded_amount.value}, left: {left}")

    timeline = send(lambda: list_payment_link_events.sync_detailed(link.id, client=client)).data
    for entry in timeline:
        # `type_` tells the type checker what `detail` contains.
        why = f" ({entry.detail.event}: {entry.detail.verdict})" if entry.type_ == "webhook" else ""
        print(f"  timeline   {entry.occurred_at.isoformat()} {entry.type_} {entry.status_after}{why}")
    assert any(entry.type_ == "webhook" and entry.status_after == Status.CAPTURED for entry in timeline)
    succeeded = next(entry for entry in timeline if entry.type_ == "operationSucceeded")
    assert succeeded.detail.operation_id == operation.id

    of_link = send(lambda: list_payment_link_operations.sync_detailed(link.id, client=client)).data
    assert of_link == [operation]

    newest = send(
        lambda: list_operations.sync_detailed(client=client, limit=1, status=[OperationStatus.SUCCEEDED])
    ).data
    assert newest[0].status == OperationStatus.SUCCEEDED

    # Without `send`, the result is one of the types of operations or a Problem.
    found = get_operation.sync(operation.id, client=client)
    assert isinstance(found, RefundOperation)
    assert isinstance(found.request.amount, Money)
    assert found.request.amount.value == 1225
    print(f"  operation  {found.id} by {found.created_by}: {found.status}")


if __name__ == "__main__":
    main()
