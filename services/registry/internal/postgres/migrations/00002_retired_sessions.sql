-- +goose Up

ALTER TABLE registry.sessions ADD COLUMN retired_at timestamptz;
COMMENT ON COLUMN registry.sessions.retired_at IS 'When its worker was given up with an attempt: its agent may still come back, to be told to end and to have a result kept as evidence.';
CREATE INDEX sessions_retired ON registry.sessions (retired_at) WHERE retired_at IS NOT NULL;
