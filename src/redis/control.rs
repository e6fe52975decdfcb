//! The scripts that control a cell: they close and open it, read its log, advance the watermark and
//! ask the server. All run with text arguments, called by their hash.

use std::sync::LazyLock;

use fred::interfaces::LuaInterface;
use fred::prelude::*;
use sha1::{Digest, Sha1};

use super::connect::once;
use super::keys::Keys;
use crate::domain::hex::hex;

/// The name by which Redis knows a script.
pub fn sha1_hex(text: &str) -> String {
    hex(&Sha1::digest(text.as_bytes()))
}

/// A small script of the reconciler or of a probe, with text arguments and mostly an integer
/// answer.
pub struct ControlScript {
    source: &'static str,
    hash: LazyLock<String>,
}

macro_rules! control {
    ($($part:expr),+) => {
        ControlScript {
            source: concat!($($part),+),
            hash: LazyLock::new(|| sha1_hex(concat!($($part),+))),
        }
    };
}

pub static CLOSE_CELL: ControlScript = control!(
    "#!lua flags=allow-oom\n",
    include_str!("../../lua/shared/still_holds.lua"),
    include_str!("../../lua/close_cell.lua")
);
pub static CLAIM_EPOCH: ControlScript = control!(
    "#!lua flags=allow-oom\n",
    include_str!("../../lua/shared/still_holds.lua"),
    include_str!("../../lua/claim_epoch.lua")
);
pub static OPEN_EPOCH: ControlScript = control!(
    "#!lua\n",
    include_str!("../../lua/shared/still_holds.lua"),
    include_str!("../../lua/open_epoch.lua")
);
pub static RESET_CLOCK: ControlScript = control!(include_str!("../../lua/reset_clock.lua"));
/// Returns the server's time in milliseconds.
static SERVER_TIME: ControlScript = control!(
    "#!lua flags=no-writes\n",
    "local time = redis.call('TIME') return time[1] * 1000 + math.floor(time[2] / 1000)"
);

/// The time of the Redis server that holds a cell, in milliseconds since the Unix epoch.
pub async fn server_time(client: &Client, cell: u32) -> Result<i64, Error> {
    SERVER_TIME.ask(client, vec![Keys::meta(cell)], vec![]).await
}

/// Returns the run id of the server that holds a key.
static SERVER_ID: ControlScript = control!(
    "#!lua flags=no-writes\n",
    include_str!("../../lua/shared/still_holds.lua"),
    "return server_id()"
);

/// The run id of the Redis server that holds a cell. It is never copied with the data: a replica
/// has a run id of its own. `None`: the server does not tell (a hosted one may forbid `INFO`).
pub async fn server_id(client: &Client, cell: u32) -> Result<Option<String>, Error> {
    let said: String = SERVER_ID.ask(client, vec![Keys::meta(cell)], vec![]).await?;
    Ok(Some(said).filter(|id| !id.is_empty()))
}

pub static ADVANCE_WATERMARK: ControlScript = control!(
    "#!lua flags=allow-oom\n",
    include_str!("../../lua/shared/still_holds.lua"),
    include_str!("../../lua/advance_watermark.lua")
);

pub static PROBE_WRITES: ControlScript =
    control!("#!lua\n", include_str!("../../lua/probe_writes.lua"));
pub static READ_LOG: ControlScript =
    control!("#!lua flags=no-writes\n", include_str!("../../lua/read_log.lua"));

impl ControlScript {
    /// Runs the script. `true` if it answered 1, its success value.
    pub async fn call(
        &self,
        client: &Client,
        keys: Vec<String>,
        args: Vec<String>,
    ) -> Result<bool, Error> {
        let answer: i64 = self.ask(client, keys, args).await?;
        Ok(answer == 1)
    }

    /// Runs the script and returns its answer.
    pub async fn ask<R: FromValue>(
        &self,
        client: &Client,
        keys: Vec<String>,
        args: Vec<String>,
    ) -> Result<R, Error> {
        let client = client.with_options(&once());
        match client.evalsha(self.hash.as_str(), keys.clone(), args.clone()).await {
            Err(e) if e.details().starts_with("NOSCRIPT") => {
                let _: () = client.script_load_cluster(self.source).await?;
                client.evalsha(self.hash.as_str(), keys, args).await
            }
            other => other,
        }
    }
}
