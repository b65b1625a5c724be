-- The event log: what happened, in order, for ever.
-- Appends go through hodei.append alone; nobody is granted INSERT, UPDATE,
-- DELETE or TRUNCATE, and the owner is refused the last three too.

-- +goose Up

CREATE TABLE hodei.events (
    position       bigint      NOT NULL,
    event_id       uuid        NOT NULL,
    stream_type    text        NOT NULL,
    stream_id      uuid        NOT NULL,
    version        integer     NOT NULL,
    type           text        NOT NULL,
    schema_version integer     NOT NULL,
    namespace      text        NOT NULL,
    correlation_id text        NOT NULL,
    causation_id   text        NOT NULL,
    actor          text        NOT NULL,
    source         text        NOT NULL,
    occurred_at    timestamptz NOT NULL,
    traceparent    text        NOT NULL,
    tracestate     text        NOT NULL,
    digest         bytea       NOT NULL, -- sha256 of data
    data           json        NOT NULL, -- the exact bytes that are published
    PRIMARY KEY (position)
) PARTITION BY RANGE (position);

CREATE INDEX events_stream ON hodei.events (stream_id, version);

-- One row per aggregate: the version check and the current state. The free space
-- in each page keeps the updates of a row's life in the page that it was born in.
CREATE TABLE hodei.streams (
    stream_id   uuid    NOT NULL PRIMARY KEY,
    stream_type text    NOT NULL,
    version     integer NOT NULL,
    state       text    NOT NULL,
    terminal    boolean NOT NULL,
    namespace   text    NOT NULL
) WITH (fillfactor = 80);

CREATE INDEX streams_live ON hodei.streams (stream_type, stream_id) WHERE NOT terminal;

CREATE TABLE hodei.keys (
    namespace   text  NOT NULL,
    kind        text  NOT NULL,
    value       text  NOT NULL,
    stream_type text  NOT NULL,
    stream_id   uuid  NOT NULL,
    digest      bytea,
    PRIMARY KEY (namespace, kind, value)
);

-- Which positions each partition of events takes, both ends included.
CREATE TABLE hodei.event_partitions (
    first_position bigint NOT NULL PRIMARY KEY,
    last_position  bigint NOT NULL,
    table_name     text   NOT NULL
);

-- The log as an auditor reads it: data can be queried by path.
CREATE VIEW hodei.event_log AS
SELECT position, occurred_at, type, schema_version, stream_type || '/' || stream_id AS aggregate, version,
       namespace, correlation_id, causation_id, actor, source, event_id, data::jsonb AS data, digest
  FROM hodei.events;

-- +goose StatementBegin
CREATE FUNCTION hodei.refuse_change() RETURNS trigger
    LANGUAGE plpgsql AS
$$
BEGIN
    RAISE EXCEPTION 'the event log is append-only: % on %.% is refused', tg_op, tg_table_schema, tg_table_name
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'correct a fact by appending another; archive old positions by detaching their partition';
END
$$;
-- +goose StatementEnd

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hodei.events
    FOR EACH STATEMENT EXECUTE FUNCTION hodei.refuse_change();

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hodei.keys
    FOR EACH STATEMENT EXECUTE FUNCTION hodei.refuse_change();

CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE ON hodei.streams
    FOR EACH STATEMENT EXECUTE FUNCTION hodei.refuse_change();

-- +goose StatementBegin
CREATE FUNCTION hodei.partition_size() RETURNS bigint
    LANGUAGE sql IMMUTABLE AS
$$ SELECT 10000000::bigint $$;
-- +goose StatementEnd

-- Makes the partition that follows the last one. The table is made apart and then
-- attached, which, unlike CREATE TABLE ... PARTITION OF, lets readers and writers
-- of the log go on. The caller holds the append lock.
-- +goose StatementBegin
CREATE FUNCTION hodei.add_partition() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS
$$
DECLARE
    lo   bigint;
    hi   bigint;
    name text;
BEGIN
    SELECT coalesce(max(last_position), 0) + 1 INTO lo FROM hodei.event_partitions;
    hi := lo + hodei.partition_size() - 1;
    name := 'events_' || lo;
    EXECUTE format('CREATE TABLE hodei.%I (LIKE hodei.events INCLUDING ALL)', name);
    EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hodei.%I
                    FOR EACH STATEMENT EXECUTE FUNCTION hodei.refuse_change()', name);
    EXECUTE format('ALTER TABLE hodei.events ATTACH PARTITION hodei.%I FOR VALUES FROM (%L) TO (%L)', name, lo, hi + 1);
    INSERT INTO hodei.event_partitions VALUES (lo, hi, name);
END
$$;
-- +goose StatementEnd

-- Sees to it that positions up to last_needed have a place and that one empty
-- partition stands ahead. That it cannot make the one ahead just now (somebody
-- holds a lock on the log) is no failure: a later append tries again.
-- +goose StatementBegin
CREATE FUNCTION hodei.ensure_partitions(last_needed bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS
$$
DECLARE
    ready bigint;
BEGIN
    LOOP
        SELECT coalesce(max(last_position), 0) INTO ready FROM hodei.event_partitions;
        EXIT WHEN ready >= last_needed;
        PERFORM hodei.add_partition();
    END LOOP;
    IF NOT EXISTS (SELECT FROM hodei.event_partitions WHERE first_position > last_needed) THEN
        BEGIN
            PERFORM hodei.add_partition();
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            RAISE LOG 'hodei: the next partition of the event log could not be made yet';
        END;
    END IF;
END
$$;
-- +goose StatementEnd

-- Appends events to streams. Arrays are columns: s_ streams, k_ keys, e_ events;
-- e_ in the order of their positions. Returns the first position and the time.
-- Raises HD001 where a stream's version or a key is not what the caller expects,
-- without saying which: conflicts are rare, and the caller reads it up.
--
-- The lock comes before anything else is read or locked: it makes positions
-- contiguous, and taking streams first was seen to deadlock. It is released after
-- the commit, so whoever gets it sees all that went before.
-- The planner settings keep a plan that was made over an empty table from
-- scanning a full one.
-- +goose StatementBegin
CREATE FUNCTION hodei.append(
    s_id uuid[], s_type text[], s_namespace text[], s_expected int[], s_version int[], s_state text[], s_terminal boolean[],
    k_namespace text[], k_kind text[], k_value text[], k_stream_type text[], k_stream_id uuid[], k_digest bytea[],
    e_id uuid[], e_stream_type text[], e_stream_id uuid[], e_version int[], e_type text[], e_schema_version int[],
    e_namespace text[], e_correlation_id text[], e_causation_id text[], e_actor text[], e_source text[],
    e_traceparent text[], e_tracestate text[], e_digest bytea[], e_data text[],
    OUT first_position bigint, OUT occurred_at timestamptz)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS
$$
DECLARE
    matched bigint;
    head    bigint;
    ready   bigint;
    ahead   bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'hodei.append needs the isolation level read committed' USING ERRCODE = 'active_sql_transaction';
    END IF;
    PERFORM pg_advisory_xact_lock(5216694956354961481);
    SELECT max(position) INTO head FROM hodei.events;
    first_position := coalesce(head, 0) + 1;
    head := first_position + cardinality(e_id) - 1;
    occurred_at := clock_timestamp();

    INSERT INTO hodei.streams AS s (stream_id, stream_type, version, state, terminal, namespace)
    SELECT u.id, u.type, u.version, u.state, u.terminal, u.namespace
      FROM unnest(s_id, s_type, s_namespace, s_expected, s_version, s_state, s_terminal)
           AS u (id, type, namespace, expected, version, state, terminal)
     WHERE u.expected = 0
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS matched = ROW_COUNT;
    ahead := matched;

    IF matched < cardinality(s_id) THEN
        UPDATE hodei.streams AS s
           SET version = u.version, state = CASE u.state WHEN '' THEN s.state ELSE u.state END, terminal = u.terminal
          FROM unnest(s_id, s_type, s_expected, s_version, s_state, s_terminal)
               AS u (id, type, expected, version, state, terminal)
         WHERE u.expected > 0 AND s.stream_id = u.id AND s.stream_type = u.type AND s.version = u.expected;
        GET DIAGNOSTICS matched = ROW_COUNT;
        IF ahead + matched <> cardinality(s_id) THEN
            RAISE EXCEPTION 'a stream has another version than expected' USING ERRCODE = 'HD001';
        END IF;
    END IF;

    IF cardinality(k_value) > 0 THEN
        INSERT INTO hodei.keys (namespace, kind, value, stream_type, stream_id, digest)
        SELECT * FROM unnest(k_namespace, k_kind, k_value, k_stream_type, k_stream_id, k_digest)
            ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS matched = ROW_COUNT;
        IF matched <> cardinality(k_value) THEN
            RAISE EXCEPTION 'a key is taken' USING ERRCODE = 'HD001';
        END IF;
    END IF;

    -- The partition ahead is looked after 1,000 times in the life of a partition.
    ahead := greatest(hodei.partition_size() / 1000, 1);
    SELECT p.last_position INTO ready FROM hodei.event_partitions AS p ORDER BY p.first_position DESC LIMIT 1;
    IF ready IS NULL OR ready < head OR (first_position - 1) / ahead <> head / ahead THEN
        PERFORM hodei.ensure_partitions(head);
    END IF;

    INSERT INTO hodei.events (position, event_id, stream_type, stream_id, version, type, schema_version, namespace,
                              correlation_id, causation_id, actor, source, occurred_at, traceparent, tracestate, digest, data)
    SELECT first_position + u.n - 1, u.id, u.stream_type, u.stream_id, u.version, u.type, u.schema_version, u.namespace,
           u.correlation_id, u.causation_id, u.actor, u.source, append.occurred_at, u.traceparent, u.tracestate, u.digest, u.data::json
      FROM unnest(e_id, e_stream_type, e_stream_id, e_version, e_type, e_schema_version, e_namespace,
                  e_correlation_id, e_causation_id, e_actor, e_source, e_traceparent, e_tracestate, e_digest, e_data)
           WITH ORDINALITY
           AS u (id, stream_type, stream_id, version, type, schema_version, namespace,
                 correlation_id, causation_id, actor, source, traceparent, tracestate, digest, data, n);
END
$$;
-- +goose StatementEnd

SELECT hodei.ensure_partitions(1);

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA hodei FROM PUBLIC;

-- Roles belong to the whole cluster, so they may exist; and who migrates may not
-- be allowed to make them. The log works without them.
-- +goose StatementBegin
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY ['hodei_service', 'hodei_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL; -- by another database's migration
                WHEN insufficient_privilege THEN
                    RAISE NOTICE 'role % is not made: not permitted', role;
                    CONTINUE;
            END;
        END IF;
        EXECUTE format('GRANT USAGE ON SCHEMA hodei TO %I', role);
        EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA hodei TO %I', role);
    END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hodei_service') THEN
        GRANT EXECUTE ON FUNCTION hodei.append TO hodei_service;
    END IF;
END
$$;
-- +goose StatementEnd
