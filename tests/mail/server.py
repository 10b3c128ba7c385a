"""A mail server for tests: aiosmtpd, with the faults that real ones have.

Usage: server.py PORT FOLDER [CERTIFICATE KEY]

Listens on 127.0.0.1. Each message that it accepts becomes a file in FOLDER. With a certificate, it demands STARTTLS and the
user `pay` with the password `hush`.

The local part of a recipient's address, up to a dot, says what goes wrong. So does the file `mode` in FOLDER, for everybody.

    busy     refused for now, as long as it says so
    twice    refused for now in the first two attempts
    unknown  refused for good, with the address in the response
    later    the content is refused for now
    never    the content is refused for good
    stall    accepted, but no response follows
    cut      accepted, but the connection ends instead of a response
    garbled  accepted, but the response makes no sense
"""

import asyncio
import base64
import email
import email.policy
import itertools
import json
import os
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult


class Handler:
    def __init__(self, folder):
        self.folder = folder
        self.numbers = itertools.count(len(os.listdir(folder)))
        self.attempts = {}

    def fault(self, address):
        try:
            with open(os.path.join(self.folder, "mode"), encoding="ascii") as file:
                mode = file.read().strip()
        except FileNotFoundError:
            mode = ""
        return mode or address.split("@")[0].split(".")[0]

    async def handle_RCPT(self, server, session, envelope, address, options):
        fault = self.fault(address)
        self.attempts[address] = self.attempts.get(address, 0) + 1
        if fault == "busy" or (fault == "twice" and self.attempts[address] < 3):
            return f"450 4.2.1 <{address}> try again later"
        if fault == "unknown":
            return f"550 5.1.1 <{address}> user unknown"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        fault = self.fault(envelope.rcpt_tos[0])
        if fault == "later":
            return "451 4.3.0 try again later"
        if fault == "never":
            return "554 5.6.0 the message looks like spam"
        self.store(envelope)
        if fault == "stall":
            await asyncio.sleep(3600)
        if fault == "cut":
            server.transport.abort()
        if fault == "garbled":
            return "hello there"
        return "250 OK"

    def store(self, envelope):
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        parts = {part.get_content_type(): part for part in message.walk() if not part.is_multipart()}
        image = parts["image/png"]
        stored = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "raw": envelope.content.decode("ascii"),
            "headers": [[name, str(value)] for name, value in message.items()],
            "types": [part.get_content_type() for part in message.walk()],
            "text": parts["text/plain"].get_content(),
            "html": parts["text/html"].get_content(),
            "image": base64.b64encode(image.get_content()).decode("ascii"),
            "imageId": image["content-id"],
        }
        path = os.path.join(self.folder, f"{next(self.numbers):06}")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(stored, file)
        os.rename(path + ".new", path + ".json")


def authenticated(server, session, envelope, mechanism, data):
    known = (data.login, data.password) == (b"pay", b"hush")
    return AuthResult(success=known, handled=False)


async def main(port, folder, *certificate):
    handler = Handler(folder)
    options = {"hostname": "mail.test", "enable_SMTPUTF8": False}
    if certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*certificate)
        options |= {
            "tls_context": tls,
            "require_starttls": True,
            "authenticator": authenticated,
            "auth_required": True,
        }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(handler, loop=loop, **options), "127.0.0.1", int(port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
