-- When a link was read from Dojo after an operation, so that a response that shows the link shows the operation's effect.
-- `response_body`, which held earlier responses, is no longer written: repeated requests get the link as it is now.
--
-- Adding a column without a default doesn't rewrite the table, so the lock is held only briefly.
ALTER TABLE operations ADD COLUMN read_back_at timestamptz;
