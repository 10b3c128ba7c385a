-- Which link replaces which. A link that can no longer be paid is renewed: a link with the same terms takes its place.

CREATE TABLE renewals (
    replaced_id uuid PRIMARY KEY REFERENCES payment_links (id),
    -- Another one takes its place if its creation failed.
    successor_id uuid NOT NULL UNIQUE REFERENCES payment_links (id),
    CHECK (replaced_id <> successor_id)
);
