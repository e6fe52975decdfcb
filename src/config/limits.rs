//! Limits on what one caller, one kind of request and one connection may use.

use clap::Args;
use ipnet::IpNet;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// The settings for limits. The defaults are meant for production.
#[derive(Args, Clone, Debug)]
pub struct Limits {
    /// Requests that one end user (scope shop) may send, such as 200/10s, or off; per instance
    #[arg(long, env = "RUSHGATE_USER_RATE", default_value = "200/10s")]
    pub user_rate: Rate,
    /// Of these, requests that change something (POST), such as 100/10s, or off; per instance
    #[arg(long, env = "RUSHGATE_USER_WRITE_RATE", default_value = "100/10s")]
    pub user_write_rate: Rate,
    /// Idempotency-Keys that one user may use in a day (UTC), over all instances
    #[arg(long, env = "RUSHGATE_USER_KEYS_PER_DAY", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub user_keys: u64,
    /// Requests that may come from one address (IPv6: one /64), such as 20000/10s, or off; per
    /// instance
    #[arg(long, env = "RUSHGATE_ADDRESS_RATE", default_value = "off")]
    pub address_rate: Rate,
    /// Networks of proxies whose X-Forwarded-For is trusted, such as 10.0.0.0/8,fd00::/8
    #[arg(long, env = "RUSHGATE_TRUSTED_PROXIES", value_delimiter = ',', value_parser = parse_network)]
    pub trusted_proxies: Vec<IpNet>,
    /// Decisions (coupons, orders, charges) in flight at once; as many again may wait, more are
    /// overloaded
    #[arg(long, env = "RUSHGATE_DECIDE_LIMIT", default_value_t = 8_192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub decide_limit: u32,
    /// The same for reads of the gate (products, templates, wallets, coupons)
    #[arg(long, env = "RUSHGATE_READ_LIMIT", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub read_limit: u32,
    /// The same for requests that need PostgreSQL (reads of orders, ledgers, popular products;
    /// cancelling)
    #[arg(long, env = "RUSHGATE_TRUTH_LIMIT", default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub truth_limit: u32,
    /// The same for requests by staff (products, stock, templates, status)
    #[arg(long, env = "RUSHGATE_STAFF_LIMIT", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub staff_limit: u32,
    /// Connections that one port serves at once; when all are taken, idle ones are closed
    #[arg(long, env = "RUSHGATE_MAX_CONNECTIONS", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Live streams (/v1/live) that are open at once, at most three quarters of the connections;
    /// more are overloaded
    #[arg(long, env = "RUSHGATE_LIVE_LIMIT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub live_limit: u32,
    /// Requests that one HTTP/2 connection may have in flight at once
    #[arg(long, env = "RUSHGATE_MAX_STREAMS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_streams: u32,
    /// How long a client may take to send its headers; an idle connection is closed after it
    #[arg(long, env = "RUSHGATE_HEADER_TIMEOUT_MS", default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub header_timeout_ms: u64,
    /// How long a client may take to send its body
    #[arg(long, env = "RUSHGATE_BODY_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub body_timeout_ms: u64,
    /// How long a client may leave an answer unread before its connection is cut
    #[arg(long, env = "RUSHGATE_WRITE_TIMEOUT_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub write_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            user_rate: Rate::per(200, 10),
            user_write_rate: Rate::per(100, 10),
            user_keys: 10_000,
            address_rate: Rate::OFF,
            trusted_proxies: Vec::new(),
            decide_limit: 8_192,
            read_limit: 1_024,
            truth_limit: 1_024,
            staff_limit: 64,
            max_connections: 16_384,
            live_limit: 10_000,
            max_streams: 128,
            header_timeout_ms: 30_000,
            body_timeout_ms: 10_000,
            write_timeout_ms: 10_000,
        }
    }
}

impl Limits {
    /// Live streams that are open at once. A quarter of the connections is kept for other requests.
    pub fn live_streams(&self) -> usize {
        self.live_limit.min(self.max_connections - self.max_connections / 4) as usize
    }

    pub fn header_timeout(&self) -> Duration {
        Duration::from_millis(self.header_timeout_ms)
    }

    pub fn body_timeout(&self) -> Duration {
        Duration::from_millis(self.body_timeout_ms)
    }

    pub fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }
}

/// A number of requests in a number of seconds; or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<Quota>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub requests: NonZeroU32,
    pub window_secs: NonZeroU32,
}

impl Rate {
    pub const OFF: Self = Self(None);

    /// `off` when either is zero.
    pub fn per(requests: u32, window_secs: u32) -> Self {
        let quota = NonZeroU32::new(requests).zip(NonZeroU32::new(window_secs));
        Self(quota.map(|(requests, window_secs)| Quota { requests, window_secs }))
    }
}

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: u32 = 1_000_000_000;
        const LONGEST_SECS: u32 = 3_600;
        if text == "off" {
            return Ok(Self::OFF);
        }
        let parts = text.strip_suffix('s').and_then(|text| text.split_once('/'));
        let numbers =
            parts.and_then(|(requests, secs)| Some((requests.parse().ok()?, secs.parse().ok()?)));
        match numbers {
            Some((requests @ 1..=MOST, secs @ 1..=LONGEST_SECS)) => Ok(Self::per(requests, secs)),
            _ => Err(format!(
                "`{text}` is no rate; use one like 200/10s (requests in seconds), or off"
            )),
        }
    }
}

/// A network, or one address.
fn parse_network(text: &str) -> Result<IpNet, String> {
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse()
        .ok()
        .or_else(one)
        .ok_or_else(|| format!("`{text}` is no network; use one like 10.0.0.0/8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    #[test]
    fn the_defaults_are_those_of_the_command_line() {
        let command = Limits::augment_args(Command::new("x")).mut_args(|arg| arg.env(None::<&str>));
        let parsed = Limits::from_arg_matches(&command.get_matches_from(["x"])).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Limits::default()));
    }

    #[test]
    fn a_rate_is_a_number_in_a_number_of_seconds() {
        assert_eq!("200/10s".parse(), Ok(Rate::per(200, 10)));
        assert_eq!("off".parse(), Ok(Rate::OFF));
        for bad in
            ["", "5", "5/s", "0/1s", "5/0s", "5/10", "-5/1s", "5/1m", "99999999999/1s", "5/3601s"]
        {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_proxy_is_a_network_or_an_address() {
        assert_eq!(parse_network("10.0.0.1").unwrap(), "10.0.0.1/32".parse().unwrap());
        assert!(parse_network("10.0.0.0/8").is_ok() && parse_network("fd00::/8").is_ok());
        assert!(parse_network("10.0.0.0/33").is_err() && parse_network("proxy").is_err());
    }
}
