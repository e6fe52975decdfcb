//! An instance that reaches Redis but not PostgreSQL, with each setting of RUSHGATE_FENCE.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::instances::code;
use super::{Outcome, Setup, Trial};
use crate::cluster::{Settings, eventually};
use crate::history::client::Fleet;
use crate::history::record::Ask;

/// Longer than any lease, and longer than a rebuild waits.
const CUT_FOR: Duration = Duration::from_secs(4);

/// `available`: the cut-off instance keeps deciding at its own Redis, because that is the gate.
pub async fn cut_off_available(seed: u64) -> Outcome {
    let (trial, way, _follower) = begin(seed, "available").await;
    let cut = trial.fleet.get(1);
    way.close();
    let (began, mut charged) = (Instant::now(), 0);
    while began.elapsed() < CUT_FOR || charged < 10 {
        let charge = Ask::Charge { user: "user-cut-off".into(), amount: 10 };
        let outcome = trial.load.send(&cut, charge, Some(format!("cut-off-{charged}"))).await;
        assert_ne!(code(&outcome), "gate-unavailable", "{outcome:?}");
        charged += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (status, body) = cut.readiness().await;
    assert_eq!(status, 200, "it is ready, and warns: {body}");
    assert!(body["warnings"].to_string().contains("PostgreSQL"), "{body}");
    way.open();
    end(trial).await
}

/// `strict`: one second after its last contact with PostgreSQL, the instance refuses requests until
/// it reaches PostgreSQL again.
pub async fn cut_off_strict(seed: u64) -> Outcome {
    let (trial, way, _follower) = begin(seed, "strict").await;
    let cut = trial.fleet.get(1);
    for silent in [true, false] {
        if silent {
            way.fall_silent()
        } else {
            way.close()
        };
        eventually("/readyz says why", || async {
            let (status, body) = cut.readiness().await;
            (status == 503 && body["reasons"].to_string().contains("RUSHGATE_FENCE=strict"))
                .then_some(())
        })
        .await;
        for n in 0..20 {
            let charge = Ask::Charge { user: "user-cut-off".into(), amount: 10 };
            let outcome =
                trial.load.send(&cut, charge, Some(format!("cut-off-{silent}-{n}"))).await;
            assert_eq!(code(&outcome), "gate-unavailable", "{outcome:?}");
        }
        way.open();
        cut.until_ready().await;
    }
    end(trial).await
}

async fn end(trial: Trial) -> Outcome {
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// Clients know an instance (0) that reaches PostgreSQL, and an instance (1) whose connection to it
/// can be cut.
async fn begin(seed: u64, fence: &str) -> (Trial, Way, crate::cluster::Instance) {
    let Setup { private, mix, .. } = Setup::default();
    let (cluster, settings) =
        Trial::servers(private, vec![("RUSHGATE_TRUTH_TIMEOUT_MS", "500".to_owned())]).await;
    let follower = cluster.start_roles("reconciler,relay,scheduler").await;
    let direct = settings.with("RUSHGATE_ROLES", "api");
    let (way, cut) = Way::to_postgres(&direct).await;
    let cut = cut.with("RUSHGATE_FENCE", fence);
    let fleet = Fleet::start(&[&direct, &cut]).await;
    let mut trial = Trial::on(seed, cluster, direct, fleet, mix).await;
    trial.a_while().await;
    (trial, way, follower)
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    /// No data passes, but connections stay open.
    Silent,
    Closed,
}

/// A TCP proxy to a server; its connections can be cut or silenced.
pub struct Way {
    port: u16,
    state: Arc<watch::Sender<State>>,
    _serving: Mutex<AbortOnDropHandle<()>>,
}

impl Way {
    /// A proxy to PostgreSQL, and the settings of an instance that connects through it.
    pub async fn to_postgres(settings: &Settings) -> (Self, Settings) {
        let url = settings.get("RUSHGATE_DATABASE_URL");
        let (server, database) = url.rsplit_once('/').unwrap();
        let (before, port) = server.rsplit_once(':').unwrap();
        let way = Self::start(port.parse().unwrap()).await;
        let through = format!("{before}:{}/{database}", way.port);
        (way, settings.with("RUSHGATE_DATABASE_URL", through))
    }

    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(watch::Sender::new(State::Open));
        let told = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                tokio::spawn(pass(caller, to, told.subscribe()));
            }
        });
        Self { port, state, _serving: Mutex::new(AbortOnDropHandle::new(serving)) }
    }

    pub fn open(&self) {
        self.state.send_replace(State::Open);
    }

    fn fall_silent(&self) {
        self.state.send_replace(State::Silent);
    }

    pub fn close(&self) {
        self.state.send_replace(State::Closed);
    }
}

/// Serves one connection. Closing the proxy ends it. While the proxy is silent, it stays open
/// without an answer.
async fn pass(mut caller: TcpStream, to: u16, mut state: watch::Receiver<State>) {
    let now = *state.borrow_and_update();
    if now == State::Open
        && let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await
    {
        tokio::select! {
            _ = copy_bidirectional(&mut caller, &mut server) => return,
            _ = state.changed() => {}
        }
    }
    // Keeps the connection open while the proxy is silent.
    let _ = state.wait_for(|state| *state != State::Silent).await;
}
