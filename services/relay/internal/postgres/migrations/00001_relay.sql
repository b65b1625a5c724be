-- +goose Up
-- The same text as relay.DDL of libs/eventing; a test keeps both equal.
create table relay.dead_letters (
	position bigint primary key,
	event_id text not null,
	type text not null,
	stream text not null,
	error text not null,
	recorded_at timestamptz not null default now()
);
comment on table relay.dead_letters is 'Events that could never be published; the events themselves stay in the log.';
