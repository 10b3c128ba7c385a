"""The sandbox's control API, which takes the place of the customer and of a faulty network."""

import os

import httpx


def _control(method: str, path: str, body: dict[str, object] | None = None) -> None:
    response = httpx.request(method, f"{os.environ['SANDBOX_URL']}/_sandbox/{path}", json=body)
    response.raise_for_status()


def pay(payment_intent_id: str | None) -> None:
    """Pays with a test card that succeeds, as the customer does."""
    _control("POST", f"payment-intents/{payment_intent_id}/pay", {})


def fail_next(operation: str, **fault: object) -> None:
    """Makes the next call of this kind to Dojo fail."""
    clear_faults()
    _control("POST", "faults", {"operation": operation, **fault})


def clear_faults() -> None:
    _control("DELETE", "faults")
