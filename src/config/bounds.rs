//! Fixed bounds of waits, queues, retries and sizes, in one place. Limits that depend on each other
//! are checked by the compiler, at the end.

use std::time::Duration;

// ---- HTTP ----------------------------------------------------------------------------------

/// Largest request body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// When a port has no connection left, it closes one that has been idle for this long.
pub const CROWDED_IDLE: Duration = Duration::from_secs(1);
/// A connection ends when its client has acknowledged nothing that was sent for this long. Without
/// it, a live stream to a client that vanished would hold its place for a quarter of an hour.
pub const DEAD_PEER: Duration = Duration::from_secs(30);
/// How often files that may change (keys, certificates) are read again.
pub const RELOAD_POLL: Duration = Duration::from_secs(1);
/// Largest such file, in bytes.
pub const MAX_RELOADED_BYTES: u64 = 256 * 1024;
/// How often the rate limits forget callers who have been quiet.
pub const RATE_UPKEEP: Duration = Duration::from_secs(10);
/// Largest headers of one request, in bytes.
pub const MAX_HEADER_BYTES: u32 = 32 * 1024;
/// Pause after a connection could not be accepted (usually because no file descriptor is left).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Seconds that a client is told to wait after a 503.
pub const RETRY_AFTER_SECS: u64 = 1;
/// Rows that one statement for a filtered list examines at most.
pub const EXAMINED_ROWS: i64 = 20_000;
/// After this time a page of such a list ends, full or not.
pub const EXAMINING_TIME: Duration = Duration::from_millis(300);

/// Answers of up to so many bytes are never compressed …
pub const COMPRESSED_FROM_BYTES: usize = 1_024;
/// … nor are larger ones by the middleware, which does it on a thread that serves requests.
pub const COMPRESSED_TO_BYTES: usize = 256 * 1024;

/// About how many pages of the catalogue are cached as JSON.
pub const RENDERED_PAGES: usize = 1_000;
/// Most bytes of these pages together.
pub const RENDERED_PAGES_BYTES: u64 = 8 * 1024 * 1024;

// ---- live streams --------------------------------------------------------------------------

/// Ids that one stream may watch.
pub const LIVE_IDS: usize = 50;
/// Different ids that all streams of an instance may watch together.
pub const LIVE_WATCHED_IDS: usize = 2_000;
/// Ids that one read of the gate asks for, so that it takes Redis about 2 ms at most. More ids take
/// turns.
pub const LIVE_ASKED_IDS: usize = 500;
/// Time between two such reads.
pub const LIVE_SAMPLE: Duration = Duration::from_millis(250);
/// How often a stream carries a comment, so that no proxy takes it for idle.
pub const LIVE_HEARTBEAT: Duration = Duration::from_secs(15);
/// Clients are told to wait for so long before they connect again, in milliseconds, and up to twice
/// as long: the streams of a stopped instance must not all come back at once.
pub const LIVE_RETRY_MS: u64 = 1_000;

// ---- start and stop ------------------------------------------------------------------------

/// First connection to a server at start-up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a starting instance checks whether PostgreSQL, which was away, can be used.
pub const DATABASE_RETRY: Duration = Duration::from_secs(1);
/// How often readiness checks Redis and PostgreSQL while nobody asks.
pub const READY_LOOK: Duration = Duration::from_millis(500);
/// How long an answer of `/readyz` waits for a check that begins now.
pub const READY_PATIENCE: Duration = Duration::from_millis(100);
/// A server that has not answered for this long counts as away.
pub const READY_STALE: Duration = Duration::from_secs(2);
/// From the moment when the ports close (SIGTERM and RUSHGATE_DRAIN_SECS) to the end of the
/// process.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stopping server waits for requests in flight.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(7);
/// Background roles stop after the API; this part of SHUTDOWN_TIMEOUT is reserved for them.
pub const BACKGROUND_STOP_LIMIT: Duration = Duration::from_millis(2_400);
/// The end of that time, for sending spans and ending the process.
pub const LAST_STEPS_LIMIT: Duration = Duration::from_millis(600);
/// How long a stopping server waits for the first request of a connection.
pub const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(200);
/// Pause before a role that has ended is restarted; doubles with each further end.
pub const ROLE_RESTART_FIRST: Duration = Duration::from_millis(500);
/// The longest such pause. A role that ran for longer than this counts as recovered.
pub const ROLE_RESTART_MAX: Duration = Duration::from_secs(30);
/// The niceness of the threads that follow the gate, where they share a machine with the thread
/// that decides. Clients wait for decisions; reconciler, relay, the folding of metrics, PostgreSQL
/// and RabbitMQ get what is left.
pub const FOLLOWERS_NICENESS: u8 = 10;
/// Pause before a failed operation is tried again.
pub const RETRY_PAUSE: Duration = Duration::from_millis(500);

// ---- metrics and logs ----------------------------------------------------------------------

/// How often metrics are folded. Without it their memory grows, and the next scrape waits for the
/// folding.
pub const METRICS_UPKEEP: Duration = Duration::from_millis(250);
/// How often cells, outbox and templates are sampled for metrics.
pub const METRICS_SAMPLE: Duration = Duration::from_secs(2);
/// Templates that have metrics of their own.
pub const METRICS_TEMPLATES: usize = 50;
/// How often all templates are searched for open ones.
pub const METRICS_TEMPLATES_SCAN: Duration = Duration::from_secs(10);
/// Most pages of templates that such a search reads.
pub const METRICS_TEMPLATE_PAGES: usize = 50;
/// How often a failure that goes on is logged again, with its count.
pub const REPEATS_LOGGED_EVERY: Duration = Duration::from_secs(120);

// ---- gate ----------------------------------------------------------------------------------

/// One Redis command, gate scripts included.
pub const REDIS_COMMAND_TIMEOUT: Duration = Duration::from_millis(2_500);
/// How long a sold-out verdict is answered from memory.
pub const SOLD_OUT_MEMORY: Duration = Duration::from_millis(200);
/// Templates and products whose sold-out verdicts one instance remembers.
pub const SOLD_OUT_ENTRIES: usize = 10_000;
/// How often a batch is sent again after a refusal that changed nothing and that a repeat can cure.
pub const GATE_REPEATS: u32 = 3;
/// Lines of orders that one call decides together, so that the call stays short and its entry
/// small. A single larger order is still decided.
pub const BATCH_LINES: usize = 1_024;
/// Bytes of large values of coupons that one call may write, as in `lua/shared/batch.lua`.
pub const BATCH_HELD_BYTES: usize = 160 * 1024;
/// Calls of a script that reads begin at least this far apart …
pub const READS_GATHER: Duration = Duration::from_millis(1);
/// … if the previous one was for this many requests or more. A few requests get their answers at
/// once.
pub const READS_FEW: usize = 8;
/// How far Redis' clock may be ahead of an instance's clock before that instance refuses to have
/// facts dated by it.
pub const CLOCK_JUMP_LIMIT: Duration = Duration::from_secs(2 * 60 * 60);
/// Clocks that differ by less count as the same when the gate's clock is set back.
pub const CLOCK_SAME: Duration = Duration::from_secs(5);
/// How long setting the clock back waits for PostgreSQL to apply what was dated before.
pub const CLOCK_RESET_WAIT: Duration = Duration::from_secs(30);

// ---- fence ---------------------------------------------------------------------------------

/// How often, at least, an instance reads PostgreSQL's cursors.
pub const FENCE_LOOK_EVERY: Duration = Duration::from_millis(500);
/// The same while PostgreSQL names another Redis or epoch than the instance's own.
pub const FENCE_LOOK_REFUSED: Duration = Duration::from_millis(50);
/// PostgreSQL counts as away when such a read takes longer, although the instance goes on waiting
/// for it …
pub const FENCE_LOOK_LIMIT: Duration = Duration::from_millis(400);
/// … for this long.
pub const FENCE_ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long, counted from its beginning, such a read lets an instance decide.
pub const FENCE_LEASE: Duration = Duration::from_secs(1);
/// With less than this left of the lease, a decision waits for the next read.
pub const FENCE_LEASE_LEAST: Duration = Duration::from_millis(250);
/// How long a rebuild on another Redis waits between moving the cursor and opening. Every lease
/// that began before is over then, with a margin for clocks that run at different speeds.
pub const FENCE_WAIT: Duration = Duration::from_millis(1_500);
/// A reply of Redis that is older does not show what its clock says now.
pub const FENCE_CLOCK_AGE: Duration = Duration::from_secs(5);
/// When a connection that leads to another Redis than the gate is replaced, and how much later each
/// further time.
pub const FENCE_FOLLOW_FIRST: Duration = Duration::from_secs(3);
/// The longest such time.
pub const FENCE_FOLLOW_MAX: Duration = Duration::from_secs(15);

// ---- log and reconciler --------------------------------------------------------------------

/// How long a blocking read waits for new log entries.
pub const LOG_POLL: Duration = Duration::from_millis(500);
/// Entries that stay in the log behind the cursor.
pub const LOG_KEPT_ENTRIES: u64 = 1_000;
/// Entries that the reconciler applies in one transaction.
pub const APPLY_ENTRIES: u64 = 64;
/// Bytes of their payloads and traces together. A single larger entry is still applied.
pub const APPLY_BYTES: usize = 512 * 1024;
/// Most bytes of the log that one call reads. A larger entry is read in parts of this size.
pub const LOG_READ_BYTES: usize = 1024 * 1024;
/// The least to which this is halved while a call takes longer than it should.
pub const LOG_READ_BYTES_LEAST: usize = 16 * 1024;
/// A call that reads the log should take no longer, so that other commands on the same connection
/// are answered in time.
pub const LOG_READ_SHOULD_TAKE: Duration = Duration::from_millis(600);
/// For entries from this size on, the reader polls `meta`, because a blocking read would transfer
/// them whole …
pub const LOG_LARGE_ENTRY_BYTES: usize = 64 * 1024;
/// … as often as this.
pub const LOG_LOOK: Duration = Duration::from_millis(25);
/// Shortest time between the reconciler's transactions while it is level with the gate: fewer and
/// larger transactions cost less.
pub const APPLY_PACE: Duration = Duration::from_millis(25);
/// The same with `RUSHGATE_ACK=truth`, where clients wait for each transaction.
pub const APPLY_PACE_WAITED_FOR: Duration = Duration::from_millis(5);

// ---- relay ---------------------------------------------------------------------------------

/// Events that the relay has in flight at once, in number …
pub const RELAY_ROWS: i64 = 1_000;
/// … and in bytes. A single larger event is still sent.
pub const RELAY_BYTES: i64 = 4 * 1024 * 1024;
/// How often the relay reads the outbox while it empties it. An event waits at most this long, then
/// only for RabbitMQ.
pub const RELAY_POLL: Duration = Duration::from_millis(50);
/// How often the relay looks for events before those that it has delivered.
pub const RELAY_LOOK_BELOW: Duration = Duration::from_secs(1);
/// How often a stand-by tries to become the relay.
pub const RELAY_STANDBY_POLL: Duration = Duration::from_secs(1);
/// Connecting to RabbitMQ, its handshake included.
pub const RELAY_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Declaring exchanges, queues and bindings.
pub const RELAY_TOPOLOGY_TIMEOUT: Duration = Duration::from_secs(10);
/// Sending the events of one step to RabbitMQ, which takes none while its memory or disk alarm is
/// on.
pub const RELAY_PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// From the last event of a step to its confirm.
pub const RELAY_CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// Connecting to PostgreSQL, or one statement there, by the relay.
pub const RELAY_TRUTH_TIMEOUT: Duration = Duration::from_secs(5);
/// The first claim of a leader, which may have to skip millions of deleted rows.
pub const RELAY_FIRST_CLAIM_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after the relay's first failure; doubles with each further one …
pub const RELAY_RETRY_FIRST: Duration = Duration::from_millis(100);
/// … up to this.
pub const RELAY_RETRY_MAX: Duration = Duration::from_secs(5);
/// Pause after RabbitMQ refused an event, or while its exchanges or queues differ from what the
/// relay declares.
pub const RELAY_REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// Heartbeat of the connection to RabbitMQ, in seconds.
pub const RELAY_HEARTBEAT_SECS: u16 = 10;
/// How often RabbitMQ's queues are measured.
pub const RELAY_MEASURE: Duration = Duration::from_secs(5);
/// How long a step may go on at shutdown, so that confirmed events are not sent again.
pub const RELAY_STOP_GRACE: Duration = Duration::from_secs(2);
/// Deliveries of one event to a consumer that keeps failing before it is dead-lettered.
pub const RELAY_DELIVERY_LIMIT: i64 = 10;

// ---- scheduler -----------------------------------------------------------------------------

/// How often the scheduler checks whether something is due.
pub const SCHEDULER_TICK: Duration = Duration::from_secs(60);
/// How long after midnight the scheduler acts. The gate's clock, which dates orders, may be that
/// far behind.
pub const SCHEDULER_GRACE: Duration = Duration::from_secs(2);
/// How long one tick waits for PostgreSQL to catch up with the gate.
pub const SCHEDULER_CATCH_UP: Duration = Duration::from_secs(10);
/// How long after midnight ticks insist on that. Later the list is made from the rows that are
/// there.
pub const SCHEDULER_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// Lists of popular products that are kept.
pub const SCHEDULER_LISTS: i64 = 10;

// ---- migrations ----------------------------------------------------------------------------

/// How long a step of a migration waits for a lock: other sessions queue behind it.
pub const MIGRATION_LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest pause before such a step is tried again.
pub const MIGRATION_RETRY_MAX: Duration = Duration::from_secs(10);
/// How long a step is retried, or another instance that migrates is waited for.
pub const MIGRATION_PATIENCE: Duration = Duration::from_secs(30 * 60);

// ---- demo ----------------------------------------------------------------------------------

/// Users that `rushgate seed` makes, and that the demo's storefront acts for: `user-1` and so on.
pub const DEMO_USERS: usize = 1_000;
/// Most users in the crowd of the demo's storefront, and most coupons they compete for.
pub const RIVALS_MAX: u64 = 3_000;
pub const RIVALS_COUPONS_MAX: u64 = 1_000;
/// From the start of such a run to the opening.
pub const RIVALS_COUNTDOWN: Duration = Duration::from_secs(10);
/// Within this time after the opening all rivals have pressed.
pub const RIVALS_PRESS: Duration = Duration::from_secs(2);
/// How long a rival waits for an answer.
pub const RIVALS_ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long coupons of the run's template are issued; the visitor may press late.
pub const RIVALS_TEMPLATE_OPEN: Duration = Duration::from_secs(10 * 60);
/// How long a whole run may take, its audit included.
pub const RIVALS_RUN_LIMIT: Duration = Duration::from_secs(90);
/// Requests of the crowd that are in flight at most.
pub const RIVALS_CONNECTIONS: usize = 128;

// ---- audit ---------------------------------------------------------------------------------

/// Elements that one page of a scan through Redis asks for.
pub const SCAN_PAGE: u32 = 500;
/// How often, at most, the audit compares again because the gate went on meanwhile.
pub const AUDIT_ATTEMPTS: u32 = 5;
/// How often the audit checks whether PostgreSQL has caught up.
pub const AUDIT_POLL: Duration = Duration::from_millis(50);

/// How long an audit that staff start waits until PostgreSQL has caught up.
pub const AUDIT_WAIT: Duration = Duration::from_secs(20);
/// How long such an audit may take as a whole.
pub const AUDIT_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Audits that an instance remembers.
pub const AUDITS_KEPT: usize = 10;

// ---- lost decisions ------------------------------------------------------------------------

/// Decisions that an instance remembers until PostgreSQL has applied them.
pub const UNCONFIRMED_DECISIONS: usize = 100_000;
/// The latest decisions that it still remembers when PostgreSQL has passed their positions.
pub const PASSED_DECISIONS: usize = 50_000;
/// Decisions that are looked up at once after a rebuild.
pub const LOSS_CANDIDATES_AT_ONCE: usize = 10_000;
/// How often an instance checks whether PostgreSQL has applied them.
pub const LOSSES_CHECK: Duration = Duration::from_secs(1);
/// Lost decisions that are logged one by one; further ones are only counted.
pub const LOSSES_LOGGED: usize = 1_000;

// ---- limits that depend on each other ------------------------------------------------------

const _: () = {
    // A read of PostgreSQL's cursors that fails still ends before the lease of the one before it,
    // and a rebuild outwaits every lease.
    assert!(FENCE_LOOK_EVERY.as_millis() + FENCE_LOOK_LIMIT.as_millis() < FENCE_LEASE.as_millis());
    assert!(FENCE_LEASE_LEAST.as_millis() < FENCE_LEASE.as_millis());
    assert!(FENCE_WAIT.as_millis() >= FENCE_LEASE.as_millis() * 3 / 2);
    // A stream's changes fit into one word with two bits to spare, and all ids have had their turn
    // within a second.
    assert!(LIVE_IDS <= 62 && LIVE_IDS <= LIVE_ASKED_IDS / 2);
    assert!(LIVE_WATCHED_IDS as u128 * LIVE_SAMPLE.as_millis() <= 1_000 * LIVE_ASKED_IDS as u128);
    // A blocking read of the log, and a read of as much as the link brings, end before their
    // command's time limit.
    assert!(LOG_POLL.as_millis() < REDIS_COMMAND_TIMEOUT.as_millis());
    assert!(LOG_READ_SHOULD_TAKE.as_millis() < REDIS_COMMAND_TIMEOUT.as_millis());
    // Halving begins above its end, and one read brings at least what one transaction applies.
    assert!(LOG_READ_BYTES_LEAST < LOG_READ_BYTES && APPLY_BYTES <= LOG_READ_BYTES);
    // The drain, the stop of the background roles and the last steps follow each other.
    let stop = BACKGROUND_STOP_LIMIT.as_millis() + LAST_STEPS_LIMIT.as_millis();
    assert!(DRAIN_TIMEOUT.as_millis() + stop <= SHUTDOWN_TIMEOUT.as_millis());
    assert!(RELAY_STOP_GRACE.as_millis() < BACKGROUND_STOP_LIMIT.as_millis());
    assert!(FIRST_REQUEST_GRACE.as_millis() < DRAIN_TIMEOUT.as_millis());
    // Readiness checks several times before a server counts as away.
    assert!(READY_LOOK.as_millis() * 2 < READY_STALE.as_millis());
    // Pauses grow up to their longest.
    assert!(ROLE_RESTART_FIRST.as_millis() <= ROLE_RESTART_MAX.as_millis());
    assert!(RELAY_RETRY_FIRST.as_millis() <= RELAY_RETRY_MAX.as_millis());
    assert!(FENCE_FOLLOW_FIRST.as_millis() <= FENCE_FOLLOW_MAX.as_millis());
    // A run of the demo's crowd ends by itself where everything answers.
    let rush = RIVALS_COUNTDOWN.as_secs() + RIVALS_PRESS.as_secs() + RIVALS_ANSWER_LIMIT.as_secs();
    assert!(rush + AUDIT_WAIT.as_secs() < RIVALS_RUN_LIMIT.as_secs());
    // A list of popular products waits for several ticks before it is made without PostgreSQL's
    // agreement.
    assert!(SCHEDULER_CATCH_UP.as_millis() < SCHEDULER_TICK.as_millis());
    assert!(SCHEDULER_TICK.as_millis() < SCHEDULER_PATIENCE.as_millis());
    assert!(
        PASSED_DECISIONS <= UNCONFIRMED_DECISIONS && LOSS_CANDIDATES_AT_ONCE <= PASSED_DECISIONS
    );
};
/// How often an instance looks for pending orders whose holds are over.
pub const HOLDS_LOOK: Duration = Duration::from_millis(250);
/// The most holds of a cell that an instance ends at once.
pub const HOLDS_ENDED_AT_ONCE: usize = 256;
/// Templates whose terms an instance remembers.
pub const TERMS_REMEMBERED: usize = 4_096;
/// The newest of a user's coupons among which a quote looks for the best.
pub const QUOTED_COUPONS: usize = 1_000;
