"""Adds what the schema can't express to the requests, so that not all of them are rejected for the same reason."""

import datetime
import hashlib
import hmac
import itertools
import json
import os
import re

import schemathesis
from requests.auth import AuthBase

SECRET = os.environ["WEBHOOK_SECRET"].encode()
# The ids of the links by their initial state.
LINKS = json.loads(os.environ["LINKS"])
# The ids of operations.
OPERATIONS = LINKS.pop("operations")
# The ids of messages, with those of their links.
MESSAGES = LINKS.pop("messages")
# The ids of callback endpoints and of events.
*ENDPOINTS, DOOMED, DOOMED_TOO = LINKS.pop("endpoints")
EVENTS = LINKS.pop("events")
EXAMPLE_ENDPOINT = "cbe_01kaz8v4wce7q8m6s5gq9nq2fd"
# The state that an operation needs, and which half of those links it uses: one that ends a link must not share it.
SUITED = {
    "amount": ("Created", 0),
    "cancel": ("Created", 1),
    "captures": ("Authorized", 0),
    "messages": ("Created", 0),
    "receipt": ("Captured", 0),
    "refunds": ("Captured", 1),
    "reversal": ("Authorized", 1),
    "tips-amount": ("Created", 0),
}
NEXT_MONTH = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)).isoformat()
numbers = itertools.count()


class Signature(AuthBase):
    """Signs like Dojo. It runs last, when the body is final."""

    def __call__(self, request):
        body = request.body or b""
        if isinstance(body, str):
            body = body.encode()
        digest = hmac.new(SECRET, body, hashlib.sha256).digest()
        request.headers["dojo-signature"] = "sha256=" + digest.hex("-").upper()
        return request


def is_time(value):
    try:
        return "T" in value and bool(datetime.datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def affordable(money):
    """Replaces a valid amount by a small one in the currency of the links."""
    if not isinstance(money, dict) or money.get("currencyCode") not in ("GBP", "EUR"):
        return money
    value = money.get("value")
    if type(value) is not int or not 0 < value < 2**53:
        return money
    return money | {"value": value % 20 + 1, "currencyCode": "GBP"}


def sendable(body):
    """Replaces addresses, languages, texts and durations, which have rules that the schema can't express."""
    body = dict(body)
    for name, value in [("to", "ann@example.com"), ("email", "ann@example.com"), ("locale", "en-GB"), ("note", "Hello")]:
        if isinstance(body.get(name), str):
            body[name] = value
    if isinstance(body.get("send"), dict):
        body["send"] = sendable(body["send"])
    if isinstance(body.get("reminders"), list):
        good = [{"after": "P3D"}, {"beforeExpiry": "P1D"}]
        body["reminders"] = [good[n % 2] for n, one in enumerate(body["reminders"]) if isinstance(one, dict)]
    return body


def about_a_link(body):
    """Changes the body of an operation so that the operation is possible."""
    body = {name: affordable(value) for name, value in body.items()}
    emails = body.get("emails")
    if isinstance(emails, list) and 0 < len(emails) <= 20 and all(type(email) is str for email in emails):
        body["emails"] = [f"{n}@example.com" for n in range(len(emails))]
    return body


def a_link(path, number, given):
    """Chooses a link in the state that the operation needs. Every third time, keeps the given one or chooses any."""
    state, half = SUITED.get(path.split("/")[-1], (None, 0))
    is_named = re.fullmatch("plink_[0-9a-z]{26}", str(given))
    # Given links were just created, and few operations are possible on those.
    if is_named and (number % 3 == 0 or state is None):
        return given
    if path.startswith("/v1/operations/"):
        return OPERATIONS[number % len(OPERATIONS)]
    links = LINKS[state][half::2] if state and number % 3 else sum(LINKS.values(), [])
    return links[number % len(links)]


def call_endpoint(case, number, path):
    """Chooses a callback endpoint, an event and a URL that exist, or can."""
    given = str(path.get("id"))
    # Given endpoints were just created, except for the one of the examples.
    is_named = re.fullmatch("cbe_[0-9a-z]{26}", given) and given != EXAMPLE_ENDPOINT
    if "id" in path and not is_named:
        ids = [DOOMED, DOOMED_TOO] if case.method == "DELETE" else ENDPOINTS
        case.path_parameters = path | {"id": ids[number % len(ids)]}
    if not isinstance(case.body, dict):
        return
    if case.path.endswith("/replay") and number % 3:
        case.body = {"eventId": EVENTS[number % len(EVENTS)]}
    if isinstance(case.body.get("url"), str) and number % 3:
        case.body = case.body | {"url": f"https://receiver.invalid/{number}"}
        # A name and a value that a header can have, and accounts that exist.
        for name in ("header", "accounts"):
            case.body.pop(name, None)


@schemathesis.hook
def before_call(context, case, kwargs):
    # Leave some requests unchanged.
    if not (number := next(numbers)) % 8:
        return
    headers, path = case.headers or {}, case.path_parameters or {}
    # A request without a signature tests that it's required.
    if "dojo-signature" in headers:
        kwargs["auth"] = Signature()
    # Every request needs its own key.
    if "Idempotency-Key" in headers:
        case.headers = headers.copy()
        case.headers["Idempotency-Key"] = f"key-{number}"
    if case.path.startswith("/v1/callback-endpoints"):
        call_endpoint(case, number, path)
        return
    if "messageId" in path and number % 3:
        link, message = MESSAGES[number % len(MESSAGES)]
        case.path_parameters = path | {"id": link, "messageId": message}
    elif "id" in path:
        case.path_parameters = path | {"id": a_link(case.path, number, path["id"])}
    if "account" in path:
        case.path_parameters = path | {"account": "default"}
    if isinstance(case.body, dict):
        if "id" in path:
            case.body = about_a_link(case.body)
        if number % 3:
            case.body = sendable(case.body)
        if is_time(case.body.get("expireAt")):
            case.body = case.body | {"expireAt": NEXT_MONTH}
