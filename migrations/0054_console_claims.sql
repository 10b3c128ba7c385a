-- What one person is moving at the console without the approval of another. Requests that arrive at the same moment count
-- together, before any of their operations is saved.
CREATE TABLE console_claims (
    client_id uuid NOT NULL REFERENCES clients (id),
    idempotency_key text NOT NULL,
    payment_link_id uuid NOT NULL REFERENCES payment_links (id),
    kind text NOT NULL CHECK (kind IN ('refund', 'capture')),
    -- Minor units, in the link's currency, including tips.
    amount bigint NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, idempotency_key)
);

CREATE INDEX console_claims_of_link ON console_claims (payment_link_id);

-- A new tip may need an approval as well.
ALTER TABLE console_approvals
    DROP CONSTRAINT console_approvals_kind_check,
    ADD CONSTRAINT console_approvals_kind_check
        CHECK (kind IN ('refund', 'capture', 'reversal', 'amount', 'tipsAmount'));
