-- The audit log: every event, as the service got it from the bus, in the order of
-- the event log. A projection: it can be rebuilt from the log, and compared with it.

-- +goose Up

-- What the projection needs beside its own tables: how far it is, and the events
-- that wait behind one that could not be applied.
CREATE TABLE audit.positions (
    name       text        NOT NULL PRIMARY KEY,
    position   bigint      NOT NULL CHECK (position >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE audit.parked (
    projection text        NOT NULL,
    stream_id  text        NOT NULL,
    position   bigint      NOT NULL,
    event      json        NOT NULL,
    error      text        NOT NULL,
    first_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, position)
);

CREATE INDEX parked_by_stream ON audit.parked (projection, stream_id, position);

CREATE TABLE audit.log (
    position       bigint      NOT NULL,
    event_id       uuid        NOT NULL,
    correlation_id text        NOT NULL,
    causation_id   text        NOT NULL, -- '' = began with the correlation
    type           text        NOT NULL,
    version        integer     NOT NULL, -- of the type's form
    actor          text        NOT NULL,
    stream_type    text        NOT NULL,
    stream_id      uuid        NOT NULL,
    stream_version integer     NOT NULL,
    namespace      text        NOT NULL,
    source         text        NOT NULL,
    occurred_at    timestamptz NOT NULL,
    digest         bytea       NOT NULL, -- sha256 of data
    data           json        NOT NULL, -- the exact bytes that came
    PRIMARY KEY (position)
) PARTITION BY RANGE (position);

-- What a query can begin with; the rest of it filters. Time has no index of its
-- own: audit.spans turns it into positions.
CREATE INDEX log_correlation ON audit.log (correlation_id, position);
CREATE INDEX log_type ON audit.log (type, position);
CREATE INDEX log_actor ON audit.log (actor, position);
CREATE INDEX log_aggregate ON audit.log (stream_type, stream_id, position);

-- Times of each 4,096 positions. The log's clock may step back, so the range of a
-- span says where to look, never what to leave out.
CREATE TABLE audit.spans (
    span     bigint      NOT NULL PRIMARY KEY, -- position / 4096
    earliest timestamptz NOT NULL,
    latest   timestamptz NOT NULL
) WITH (fillfactor = 50);

-- How many events there are of each type, kept in the transaction that adds them.
CREATE TABLE audit.counts (
    type   text   NOT NULL PRIMARY KEY,
    events bigint NOT NULL
) WITH (fillfactor = 50);

-- Sees to it that positions through last_needed have a partition. It is made apart
-- and then attached: unlike CREATE TABLE ... PARTITION OF, that lets readers go on.
-- +goose StatementBegin
CREATE FUNCTION audit.ensure_partitions(last_needed bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
    size CONSTANT bigint := 10000000;
    lo   bigint;
    name text;
BEGIN
    FOR lo IN SELECT generate_series(0, last_needed / size) * size LOOP
        name := 'log_' || lo;
        CONTINUE WHEN to_regclass('audit.' || name) IS NOT NULL;
        EXECUTE format('CREATE TABLE audit.%I (LIKE audit.log INCLUDING ALL)', name);
        EXECUTE format('ALTER TABLE audit.log ATTACH PARTITION audit.%I FOR VALUES FROM (%L) TO (%L)', name, lo, lo + size);
    END LOOP;
END
$$;
-- +goose StatementEnd

SELECT audit.ensure_partitions(1);

-- What auditors read: the same events, with data that SQL can look into.
CREATE VIEW audit.events AS
SELECT position, event_id, correlation_id, causation_id, type, version, actor, stream_type || '/' || stream_id AS aggregate,
       stream_type, stream_id, stream_version, namespace, source, occurred_at, digest, data::jsonb AS data
  FROM audit.log;

COMMENT ON VIEW audit.events IS
    'Every event, for reading with SQL. Set statement_timeout (hodei_auditor has 60s where the role may be changed) or use a standby.';

-- Roles belong to the whole cluster and may be missing; audit works without them.
-- +goose StatementBegin
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hodei_auditor') THEN
        GRANT USAGE ON SCHEMA audit TO hodei_auditor;
        GRANT SELECT ON audit.events, audit.log, audit.counts, audit.spans TO hodei_auditor;
        BEGIN
            ALTER ROLE hodei_auditor SET statement_timeout = '60s';
            ALTER ROLE hodei_auditor SET default_transaction_read_only = on;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RAISE NOTICE 'statement_timeout of hodei_auditor is not set: not permitted';
            -- Two databases of one cluster may be migrated at once.
            WHEN internal_error OR unique_violation OR serialization_failure THEN
                RAISE NOTICE 'statement_timeout of hodei_auditor is being set by somebody else';
        END;
    END IF;
END
$$;
-- +goose StatementEnd
