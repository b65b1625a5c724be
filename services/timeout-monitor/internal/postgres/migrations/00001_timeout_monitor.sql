-- +goose Up
-- The text of projection.DDL of libs/eventing; a test keeps both equal.
create table "timeout_monitor"."positions" (
	name text primary key,
	position bigint not null check (position >= 0),
	updated_at timestamptz not null default now()
);
comment on table "timeout_monitor"."positions" is 'How far each consumer has handled the event log.';
create table "timeout_monitor"."parked" (
	projection text not null,
	stream_id text not null,
	position bigint not null,
	event json not null,
	error text not null,
	first_at timestamptz not null default now(),
	primary key (projection, position)
);
create index on "timeout_monitor"."parked" (projection, stream_id, position);
comment on table "timeout_monitor"."parked" is 'Events that wait behind one that could not be applied, and that one.';

-- One row for each job and worker that is not at its end. A row is written at
-- every change of state: the free space keeps its versions in one page.
create table timeout_monitor.deadlines (
	stream_id uuid primary key,
	stream_type text not null,
	version integer not null,
	state text not null,
	attempt integer not null,
	provider_id text not null,
	kind text not null,
	threshold interval,
	due_at timestamptz,
	cause text not null,
	holds integer not null default 0,
	watch json not null
) with (fillfactor = 80);
comment on table timeout_monitor.deadlines is 'The deadline that each job and worker is under; due_at is null where it is under none.';
comment on column timeout_monitor.deadlines.cause is 'The id of the event that armed the deadline.';
comment on column timeout_monitor.deadlines.holds is 'How often the deadline had passed and could only be waited for.';
comment on column timeout_monitor.deadlines.watch is 'The fold of the events, from which the deadline follows.';
create index deadlines_due on timeout_monitor.deadlines (due_at, stream_id) where due_at is not null;
create index deadlines_provider on timeout_monitor.deadlines (provider_id, state) where state in ('READY', 'SCHEDULED');
create index deadlines_connected on timeout_monitor.deadlines (stream_id) where stream_type = 'worker' and state in ('READY', 'BUSY', 'DRAINING');

create table timeout_monitor.providers (
	provider_id text primary key,
	idle_timeout interval not null,
	scheduled_timeout interval not null,
	min_idle integer not null
);
comment on table timeout_monitor.providers is 'What each provider''s settings say about deadlines.';

create table timeout_monitor.adopted (
	one boolean primary key default true check (one),
	rules text not null,
	adopted_at timestamptz not null default now()
);
comment on table timeout_monitor.adopted is 'The thresholds that the stored deadlines were computed by.';
