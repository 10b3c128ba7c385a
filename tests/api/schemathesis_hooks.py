"""What a request needs that no schema can say, so that not all of them are refused for the same reason."""

import datetime
import hashlib
import hmac
import itertools
import os

import schemathesis
from requests.auth import AuthBase

SECRET = os.environ["WEBHOOK_SECRET"].encode()
NEXT_MONTH = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)).isoformat()
numbers = itertools.count()


class Signature(AuthBase):
    """Signs as Dojo does. It comes last, when the body is what is sent."""

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


@schemathesis.hook
def before_call(context, case, kwargs):
    headers = case.headers or {}
    # A request that has none tests that there has to be one.
    if case.path == "/webhooks/dojo" and "dojo-signature" in headers:
        kwargs["auth"] = Signature()
    # A key is for one request. Some are left as they are, and some of those are refused.
    if "Idempotency-Key" in headers and (number := next(numbers)) % 10:
        headers["Idempotency-Key"] = f"key-{number}"
    if isinstance(case.body, dict) and is_time(case.body.get("expireAt")):
        case.body = case.body | {"expireAt": NEXT_MONTH}
