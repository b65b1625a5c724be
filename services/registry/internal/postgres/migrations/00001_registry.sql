-- +goose Up

CREATE TABLE registry.positions (
    name text PRIMARY KEY,
    position bigint NOT NULL CHECK (position >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE registry.positions IS 'How far each consumer has handled the event log.';

CREATE TABLE registry.parked (
    projection text NOT NULL,
    stream_id text NOT NULL,
    position bigint NOT NULL,
    event json NOT NULL,
    error text NOT NULL,
    first_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, position)
);
CREATE INDEX ON registry.parked (projection, stream_id, position);
COMMENT ON TABLE registry.parked IS 'Events that wait behind one that could not be applied, and that one.';

CREATE TABLE registry.tokens (
    worker_id uuid PRIMARY KEY,
    token_hash bytea NOT NULL,
    expires_at timestamptz NOT NULL,
    nonce text NOT NULL DEFAULT '',
    issued_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz
);
COMMENT ON TABLE registry.tokens IS 'Registration tokens, hashed; one a worker.';

CREATE TABLE registry.sessions (
    worker_id uuid PRIMARY KEY,
    session_hash bytea NOT NULL UNIQUE,
    epoch bigint NOT NULL DEFAULT 0,
    replica text NOT NULL DEFAULT '',
    connected_at timestamptz,
    last_heartbeat_at timestamptz
);
COMMENT ON TABLE registry.sessions IS 'Sessions of agents, hashed; the epoch counts their streams.';

-- The list of workers: a projection, made from the log alone. fold is the
-- worker as the domain folds it; the columns beside it are what lists filter by.
CREATE TABLE registry.workers (
    worker_id uuid PRIMARY KEY,
    version int NOT NULL,
    state text NOT NULL,
    provider_id text NOT NULL,
    provider_name text NOT NULL,
    created_at timestamptz NOT NULL,
    fold jsonb NOT NULL
);
CREATE INDEX workers_newest ON registry.workers (created_at DESC, worker_id DESC);
CREATE INDEX workers_living ON registry.workers (created_at DESC, worker_id DESC) WHERE state <> 'TERMINATED';

-- Output of jobs. day is when registry took the chunk: it is what retention
-- goes by, and no agent's clock can choose a partition.
CREATE TABLE registry.log_chunks (
    job_id uuid NOT NULL,
    attempt int NOT NULL,
    seq bigint NOT NULL,
    day date NOT NULL,
    stream text NOT NULL,
    at timestamptz NOT NULL,
    data bytea NOT NULL,
    dropped bigint NOT NULL DEFAULT 0,
    eof boolean NOT NULL DEFAULT false,
    PRIMARY KEY (job_id, attempt, seq, day)
) PARTITION BY RANGE (day);
COMMENT ON TABLE registry.log_chunks IS 'Output of jobs, a partition a day (UTC); whole partitions are dropped after the retention.';

-- Makes the partitions of the days that lie from first on, and returns how many
-- were missing. Attaching, unlike CREATE TABLE ... PARTITION OF, lets readers
-- and writers go on.
-- +goose StatementBegin
CREATE FUNCTION registry.ensure_log_partitions(first date, days int) RETURNS int
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
    d date;
    part text;
    made int := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(26732, hashtext('registry.log_chunks'));
    FOR i IN 0 .. days - 1 LOOP
        d := first + i;
        part := 'log_chunks_' || to_char(d, 'YYYYMMDD');
        CONTINUE WHEN EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = 'registry' AND c.relname = part);
        EXECUTE format('CREATE TABLE registry.%I (LIKE registry.log_chunks INCLUDING ALL)', part);
        EXECUTE format('ALTER TABLE registry.log_chunks ATTACH PARTITION registry.%I FOR VALUES FROM (%L) TO (%L)', part, d, d + 1);
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hodei_service') THEN
            EXECUTE format('GRANT SELECT, INSERT ON registry.%I TO hodei_service', part);
        END IF;
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;
-- +goose StatementEnd

-- Drops the partitions of the days before a day, and returns their names.
-- +goose StatementBegin
CREATE FUNCTION registry.drop_log_partitions(before date) RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
    part text;
BEGIN
    PERFORM pg_advisory_xact_lock(26732, hashtext('registry.log_chunks'));
    FOR part IN
        SELECT c.relname::text FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'registry.log_chunks'::regclass AND c.relname::text < 'log_chunks_' || to_char(before, 'YYYYMMDD')
        ORDER BY 1
    LOOP
        EXECUTE format('DROP TABLE registry.%I', part);
        RETURN NEXT part;
    END LOOP;
END
$$;
-- +goose StatementEnd

SELECT registry.ensure_log_partitions((now() AT TIME ZONE 'UTC')::date, 3);

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA registry FROM PUBLIC;

-- +goose StatementBegin
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hodei_service') THEN
        GRANT USAGE ON SCHEMA registry TO hodei_service;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA registry TO hodei_service;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA registry TO hodei_service;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hodei_auditor') THEN
        GRANT USAGE ON SCHEMA registry TO hodei_auditor;
        GRANT SELECT ON registry.workers TO hodei_auditor;
    END IF;
END
$$;
-- +goose StatementEnd
