-- Messages that give a link to its customer, and reminders.

-- A message stands here before anything is sent, and its outcome afterwards, so that each is sent once.
CREATE TABLE messages (
    -- A version 7 UUID: it sorts by time. The email's `Message-ID` is derived from it, so it is the same in every attempt.
    id uuid PRIMARY KEY,
    payment_link_id uuid NOT NULL REFERENCES payment_links (id),
    account text NOT NULL,
    channel text NOT NULL CHECK (channel IN ('email')),
    -- Why there is a message: a request for it, the creation of the link, or a reminder that was due.
    purpose text NOT NULL CHECK (purpose IN ('request', 'creation', 'reminder')),
    -- The customer's address. NULL: erased.
    recipient text,
    -- A text of the caller's in the message.
    note text,
    locale text NOT NULL,
    -- Unknown: its content was sent to the mail server, and the response was lost. Canceled: the link could no longer be paid.
    status text NOT NULL CHECK (status IN ('Pending', 'Sent', 'Failed', 'Canceled', 'Unknown')),
    -- Why it was not sent, or what happened to the last attempt. It contains no address.
    failure text,
    attempts integer NOT NULL DEFAULT 0,
    -- When the content was about to be sent to the mail server. From then on the message may arrive, so it isn't sent again
    -- unless the mail server has refused it.
    handed_over_at timestamptz,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    -- When to send it next. NULL: done.
    due_at timestamptz,
    leased_until timestamptz,
    CHECK ((status = 'Pending') = (due_at IS NOT NULL)),
    CHECK (status <> 'Pending' OR recipient IS NOT NULL)
);

CREATE INDEX messages_of_link ON messages (payment_link_id, id);
CREATE INDEX messages_due ON messages (account, due_at) WHERE due_at IS NOT NULL;

-- Reminders that are still to come. A row is removed with the transaction that records that the reminder was due.
CREATE TABLE reminders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_link_id uuid NOT NULL REFERENCES payment_links (id),
    -- Its place in the list that the link was requested with, from 0.
    number smallint NOT NULL,
    account text NOT NULL,
    due_at timestamptz NOT NULL,
    leased_until timestamptz,
    UNIQUE (payment_link_id, number)
);

CREATE INDEX reminders_due ON reminders (account, due_at);

-- A key that led to a message has the message's link as well. No version mistakes it for that of a creation, because the
-- request's hash includes its path.
ALTER TABLE idempotency_keys ADD COLUMN message_id uuid;

-- Reminders are published. The address that a link is sent to is left out, like everything about the customer.
CREATE OR REPLACE FUNCTION feed_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO feed_outbox (entry_id, link)
    SELECT NEW.id,
           to_jsonb(link) || jsonb_build_object(
               'request', link.request
                   - ARRAY['customer', 'billingAddress', 'shippingDetails', 'requestSecurity', 'send'],
               'payment', NULL)
    FROM payment_links link WHERE link.id = NEW.payment_link_id;
    RETURN NULL;
END $$;

DROP TRIGGER feed_change ON payment_link_events;
CREATE TRIGGER feed_change AFTER INSERT ON payment_link_events FOR EACH ROW
    WHEN (NEW.kind IN (
        'created', 'failed', 'reconciled', 'amountMismatch', 'unknownAtDojo', 'surplusPaid',
        'operationSucceeded', 'operationFailed', 'operationUnconfirmed', 'reminderDue'
    ))
    EXECUTE FUNCTION feed_change();
