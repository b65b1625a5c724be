-- +goose Up

ALTER TABLE registry.sessions ADD COLUMN connection bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN registry.sessions.connection IS 'The last connection that got an epoch, as its agent counts them; 0 = none yet, or the agent does not count. A session is one agent process, so another session begins anew.';
