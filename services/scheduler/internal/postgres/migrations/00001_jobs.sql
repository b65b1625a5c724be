-- The scheduler's read model: projections of the event log, which can be dropped
-- and rebuilt at any time.

-- +goose Up

-- What the projection needs beside its own tables: how far it is, and the events
-- that wait behind one that could not be applied.
CREATE TABLE scheduler.positions (
    name       text        NOT NULL PRIMARY KEY,
    position   bigint      NOT NULL CHECK (position >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE scheduler.parked (
    projection text        NOT NULL,
    stream_id  text        NOT NULL,
    position   bigint      NOT NULL,
    event      json        NOT NULL,
    error      text        NOT NULL,
    first_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, position)
);

CREATE INDEX parked_by_stream ON scheduler.parked (projection, stream_id, position);

-- One row per job as it is. Lists are newest first by (created_at, id).
CREATE TABLE scheduler.jobs (
    id             uuid        NOT NULL PRIMARY KEY,
    name           text        NOT NULL,
    namespace      text        NOT NULL,
    state          text        NOT NULL,
    attempt        integer     NOT NULL,
    version        integer     NOT NULL, -- of the job's stream, as far as projected
    priority       integer     NOT NULL,
    worker_id      text        NOT NULL, -- '' = none
    provider_id    text        NOT NULL,
    labels         jsonb       NOT NULL,
    correlation_id text        NOT NULL,
    queued_by      text        NOT NULL,
    retry_of       text        NOT NULL,
    reason         text        NOT NULL,
    deferred       json        NOT NULL, -- why nothing could run it, candidate by candidate
    cancel         json,                 -- the pending request to cancel
    result         json,                 -- of the last attempt that ended
    created_at     timestamptz NOT NULL,
    queued_at      timestamptz,
    started_at     timestamptz,
    finished_at    timestamptz,
    not_before     timestamptz
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);

CREATE INDEX jobs_newest ON scheduler.jobs (created_at DESC, id DESC);
CREATE INDEX jobs_by_state ON scheduler.jobs (state, created_at DESC, id DESC);
CREATE INDEX jobs_by_namespace ON scheduler.jobs (namespace, created_at DESC, id DESC);
CREATE INDEX jobs_by_label ON scheduler.jobs USING gin (labels jsonb_path_ops) WHERE labels <> '{}';

-- Planning a search for a label needs to know how common it is.
ALTER TABLE scheduler.jobs ALTER COLUMN labels SET STATISTICS 1000;

-- How many jobs are in each state, kept in the transaction that changes them.
CREATE TABLE scheduler.counts (
    namespace text   NOT NULL,
    state     text   NOT NULL,
    jobs      bigint NOT NULL,
    PRIMARY KEY (namespace, state)
) WITH (fillfactor = 50);

-- The providers that jobs may name.
CREATE TABLE scheduler.providers (
    id       uuid   NOT NULL PRIMARY KEY,
    name     text   NOT NULL,
    enabled  boolean NOT NULL,
    position bigint NOT NULL -- of the last event projected
);

CREATE INDEX providers_by_name ON scheduler.providers (name);
