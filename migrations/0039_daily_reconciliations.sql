-- The daily comparison of the books with Dojo's list of transactions.

CREATE TABLE daily_reconciliations (
    account text NOT NULL,
    business_day date NOT NULL,
    -- The result of the last comparison. NULL: there was none yet.
    state text CHECK (state IN ('Agrees', 'Differs', 'Unavailable')),
    reconciled_at timestamptz,
    -- How many transactions of payment links Dojo lists, and how many of them have their movement.
    transactions bigint NOT NULL DEFAULT 0,
    matched bigint NOT NULL DEFAULT 0,
    difference_count bigint NOT NULL DEFAULT 0,
    -- The first differences, whole.
    differences jsonb NOT NULL DEFAULT '[]',
    -- When to compare next. NULL: never again, unless somebody asks for it.
    due_at timestamptz,
    leased_until timestamptz,
    PRIMARY KEY (business_day, account)
);

CREATE INDEX daily_reconciliations_due ON daily_reconciliations (account, due_at) WHERE due_at IS NOT NULL;

-- Which of Dojo's transactions belong to which movements, as comparisons have found, so that no movement explains the
-- transactions of two days.
CREATE TABLE matched_transactions (
    account text NOT NULL,
    transaction_id text NOT NULL,
    -- When it was made, by Dojo's list.
    transaction_at timestamptz NOT NULL,
    movement_id uuid NOT NULL REFERENCES movements (id),
    -- How much of the movement it explains, in minor units. Several refunds in Dojo's portal may be one movement.
    amount bigint NOT NULL CHECK (amount > 0),
    PRIMARY KEY (account, transaction_id)
);

CREATE INDEX matched_transactions_of_movement ON matched_transactions (movement_id);

-- When a business day begins. It is the inverse of `business_day`.
CREATE FUNCTION business_day_start(day date, zone text, cutoff time) RETURNS timestamptz LANGUAGE sql STABLE
    RETURN (day + cutoff - CASE WHEN cutoff >= '12:00' THEN interval '1 day' ELSE interval '0' END) AT TIME ZONE zone;
