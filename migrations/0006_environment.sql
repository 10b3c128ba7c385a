-- Test money and real money never stand in one database: a report, a refund or a restore would take the one for the
-- other. The first service that starts on a database says which it is for, and the foreign key holds every link to
-- it, whatever key a later one is started with.
CREATE TABLE deployment (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    environment text NOT NULL UNIQUE CHECK (environment IN ('sandbox', 'production'))
);

INSERT INTO deployment (environment) SELECT DISTINCT environment FROM payment_links;

ALTER TABLE payment_links
    ADD CONSTRAINT payment_links_environment FOREIGN KEY (environment) REFERENCES deployment (environment);
