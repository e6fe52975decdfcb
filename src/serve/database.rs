//! PostgreSQL at the start of an instance: checks and migrates its schema, and checks the rights of
//! the instance's roles.
//!
//! The gate decides without PostgreSQL, so an instance starts while PostgreSQL is away: it logs
//! that and keeps trying. Its followers (reconciler, relay, scheduler) start once PostgreSQL is
//! ready. An error that PostgreSQL reports at the start (no such database, a wrong password, a
//! missing right) ends the process. The same error later does not: instances that can decide must
//! not all stop because PostgreSQL came back with other settings. Later, only a schema that is not
//! for this version ends the process.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ServeError, rights};
use crate::config::bounds::{CONNECT_TIMEOUT, DATABASE_RETRY};
use crate::config::{Role, Servers};
use crate::telemetry::repeated::Repeated;
use crate::truth;
use crate::truth::migrate::{self, MigrateError};

/// Time limit of each statement that checks PostgreSQL.
const LOOK_LIMIT: Duration = CONNECT_TIMEOUT;
/// Time limit for closing the connection.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Why the roles cannot start.
#[derive(Debug)]
pub enum Unprepared {
    /// PostgreSQL does not answer or is read-only. This may pass.
    Away(String),
    /// PostgreSQL answers, and its setup is wrong.
    Wrong(ServeError),
}

impl std::fmt::Display for Unprepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Away(why) => {
                write!(
                    f,
                    "PostgreSQL cannot be used yet ({why}): start it, or correct RUSHGATE_DATABASE_URL"
                )
            }
            Self::Wrong(error) => error.fmt(f),
        }
    }
}

/// Whether PostgreSQL is ready for the roles; cheap to clone.
#[derive(Clone)]
pub struct Prepared(watch::Receiver<Option<Arc<str>>>);

impl Prepared {
    /// Waits until the roles may start.
    pub async fn wait(&mut self) {
        if self.0.wait_for(Option::is_none).await.is_err() {
            std::future::pending().await // the process stops
        }
    }

    /// Why the roles may not start yet; `None`: they may.
    pub fn trouble(&self) -> Option<String> {
        self.0.borrow().as_deref().map(str::to_owned)
    }
}

/// Prepares PostgreSQL for `roles`. If it is away, logs that; the returned future then keeps trying
/// until `stop`. It resolves to an error if it finds that this version must not serve on this
/// database at all.
pub async fn prepare(
    servers: &Servers,
    roles: &[Role],
    stop: &CancellationToken,
) -> Result<(Prepared, impl Future<Output = Option<ServeError>> + Send + 'static), ServeError> {
    let first = match try_once(servers, roles).await {
        Ok(()) => None,
        Err(Unprepared::Wrong(error)) => return Err(error),
        Err(away @ Unprepared::Away(_)) => Some(away),
    };
    let (tell, told) = watch::channel(first.as_ref().map(|why| why.to_string().into()));
    let (servers, roles, stop) = (servers.clone(), roles.to_vec(), stop.clone());
    let going_on = async move {
        let mut trouble = Repeated::new("waiting for PostgreSQL");
        let mut outcome = first.map_or(Ok(()), Err);
        while let Err(why) = outcome {
            let why = match why {
                Unprepared::Wrong(ServeError::Database(
                    error @ (MigrateError::TooOld { .. } | MigrateError::Changed(_)),
                )) => return Some(error.into()),
                other => other,
            };
            trouble.failed(&why);
            tell.send_replace(Some(why.to_string().into()));
            stop.run_until_cancelled(tokio::time::sleep(DATABASE_RETRY)).await?;
            outcome = Box::pin(try_once(&servers, &roles)).await;
        }
        trouble.works();
        tell.send_replace(None);
        stop.cancelled().await; // the receivers fail once the sender is dropped
        None
    };
    Ok((Prepared(told), going_on))
}

async fn try_once(servers: &Servers, roles: &[Role]) -> Result<(), Unprepared> {
    let connecting =
        async { truth::leader_session(&servers.database_url, "rushgate-start")?.connect().await };
    let mut conn = limited(connecting).await?;
    let outcome = look(&mut conn, servers, roles).await;
    let _ = tokio::time::timeout(CLOSE_LIMIT, conn.close()).await; // the result is there already
    outcome
}

async fn look(
    conn: &mut PgConnection,
    servers: &Servers,
    roles: &[Role],
) -> Result<(), Unprepared> {
    let read_only = sqlx::query_scalar("SELECT current_setting('transaction_read_only')::bool");
    let read_only: bool = limited(read_only.fetch_one(&mut *conn)).await?;
    if let Err(error) = migrate::migrate(servers).await {
        // Has PostgreSQL gone away in the meantime? Then this fails as `Away`.
        let _: bool = limited(sqlx::query_scalar("SELECT true").fetch_one(&mut *conn)).await?;
        return Err(match read_only {
            true => Unprepared::Away(format!(
                "it is read-only and lacks this version's schema: {error}"
            )),
            false => Unprepared::Wrong(error.into()),
        });
    }
    match limited(rights::missing(conn, roles)).await? {
        Some(line) => Err(Unprepared::Wrong(ServeError::Rights(line))),
        None => Ok(()),
    }
}

/// Runs `work` with a time limit, and classifies its error by whether PostgreSQL answered.
async fn limited<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Unprepared> {
    match tokio::time::timeout(LOOK_LIMIT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if is_away(&error) => Err(Unprepared::Away(error.to_string())),
        Ok(Err(error)) => Err(Unprepared::Wrong(ServeError::Unusable(error.to_string()))),
        Err(_) => Err(Unprepared::Away(format!("no answer in {} s", LOOK_LIMIT.as_secs()))),
    }
}

/// SQLSTATE class 08: connection exception; class 53: insufficient resources (too many
/// connections); 57P01 to 57P03: shut down, crashed, starting.
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            code.starts_with("08") || code.starts_with("53") || code.starts_with("57P0")
        }),
        _ => false,
    }
}
