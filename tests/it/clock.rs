//! `rushgate clock show` and `rushgate clock reset`, run as an operator runs them, on a Redis whose
//! clock is set forward and back.

use jiff::Timestamp;

use crate::cluster::*;
use crate::faults::Clock;

const MINUTE_MS: i64 = 60_000;
/// Below and above CLOCK_JUMP_LIMIT, from which on instances decide nothing.
const AHEAD_MS: i64 = 90 * MINUTE_MS;
const FAR_AHEAD_MS: i64 = 30 * 24 * 60 * MINUTE_MS;

/// How far the clocks are ahead of this machine's, in seconds: gate, PostgreSQL, Redis' server.
fn ahead(shown: &str) -> [i64; 3] {
    assert!(shown.starts_with("cell 0, against this machine's clock:"), "{shown}");
    assert!(
        shown.lines().any(|line| line.contains("this machine ") && line.ends_with(" +0.000 s")),
        "{shown}"
    );
    ["the gate has used", "PostgreSQL has seen", "Redis' server"].map(|name| {
        let line = shown.lines().find(|line| line.trim_start().starts_with(name));
        let number =
            line.and_then(|line| line.split_whitespace().rev().nth(1)?.parse::<f64>().ok());
        number.unwrap_or_else(|| panic!("{name}: {shown}")) as i64
    })
}

fn is_about(secs: i64, ms: i64) -> bool {
    (secs - ms / 1_000).abs() < 60
}

#[tokio::test]
async fn an_operator_sees_a_clock_that_jumped_and_sets_the_gates_back() {
    let clock = Clock::new();
    let cluster =
        Cluster::with(Private { redis_under: clock.command(), ..Private::default() }).await;
    let instance = cluster.start().await;
    let charged_ms = async || {
        let answer = instance.send(&Request::charge("ann", 1_000)).await;
        let at = answer.body["charged_at"].as_str()?.parse::<Timestamp>().unwrap();
        Some(at.as_millisecond() - Timestamp::now().as_millisecond())
    };
    let run = async |what: &str| cluster.settings.run(&["clock", what]).await;
    let show = async || ahead(&run("show").await.assert_success().stdout);

    // Redis' clock is ahead, and the gate dates by it.
    clock.set_off(AHEAD_MS);
    let off = eventually("it is decided", charged_ms).await;
    assert!(is_about(off / 1_000, AHEAD_MS), "{off}");
    cluster.caught_up().await;
    let shown = show().await;
    assert!(shown.iter().all(|secs| is_about(*secs, AHEAD_MS)), "{shown:?}");
    let refused = run("reset").await;
    assert!(refused.code == 1 && refused.stderr.contains("the wrong one first"), "{refused:?}");

    // More than CLOCK_JUMP_LIMIT: nothing is decided.
    clock.set_off(FAR_AHEAD_MS);
    let answer = instance.send(&Request::charge("ann", 1_000)).await;
    assert_eq!((answer.status, answer.code()), (503, "gate-unavailable"));
    let [gate, _, server] = show().await;
    assert!(is_about(gate, AHEAD_MS) && is_about(server, FAR_AHEAD_MS), "{gate} {server}");

    // Redis' clock is right again. The gate's clock stands still until an operator sets it back.
    clock.set_off(0);
    let off = eventually("it is decided again", charged_ms).await;
    assert!(is_about(off / 1_000, AHEAD_MS), "{off}");
    cluster.caught_up().await;
    let [gate, truth, server] = show().await;
    assert!(
        is_about(gate, AHEAD_MS) && is_about(truth, AHEAD_MS) && is_about(server, 0),
        "{gate} {truth} {server}"
    );
    let reset = run("reset").await.assert_success().stdout;
    assert!(ahead(&reset).iter().all(|secs| is_about(*secs, 0)), "{reset}");
    let off = eventually("it is decided", charged_ms).await;
    assert!(is_about(off / 1_000, 0), "{off}");
    cluster.assert_consistent().await;
    let shown = show().await;
    assert!(
        shown.iter().all(|secs| is_about(*secs, 0)),
        "applying does not bring the jump back: {shown:?}"
    );

    cluster.redis.stop().await;
    for what in ["show", "reset"] {
        let failed = run(what).await;
        assert_eq!(failed.code, 1, "{failed:?}");
        assert!(
            failed.stdout.is_empty() && failed.stderr.contains("RUSHGATE_REDIS_URL"),
            "{failed:?}"
        );
    }
    instance.stop().await;
}
