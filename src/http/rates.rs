//! Rate limits per end user and per address, by GCRA: a bucket for each that refills steadily.
//!
//! Each instance counts for itself, in memory: the limits protect the instance, its processor and
//! its queues. What must hold in the whole cluster (one coupon per user, no stock below zero) is
//! decided by the gate; no rate limit could ensure it. A count shared through Redis would cost the
//! hot path a round trip to the very server that it is to protect. With N instances behind a
//! balancer a user can reach N times the rate, and the documentation says so.
//!
//! Buckets are created by a key's first request. [`Rates::upkeep`] removes them when they are full
//! again.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use super::problem::{Code, Problem};
use super::request_notes::{QuotaState, RequestNotes, Who};
use super::server::Peer;
use crate::config::bounds::RATE_UPKEEP;
use crate::config::{Limits, Rate};
use crate::domain::UserId;

/// draft-ietf-httpapi-ratelimit-headers-10
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const FORWARDED_FOR: &str = "x-forwarded-for";
/// Hops of `X-Forwarded-For` that are read at most.
const MAX_HOPS: usize = 16;

/// The limits of one instance.
pub struct Rates {
    user: Option<Limiter<UserId>>,
    write: Option<Limiter<UserId>>,
    address: Option<Limiter<IpAddr>>,
    proxies: Vec<IpNet>,
}

struct Limiter<K: Hash + Eq + Clone> {
    of: Who,
    buckets: RateLimiter<K, DashMapStateStore<K>, DefaultClock, StateInformationMiddleware>,
    burst: u32,
    /// The time in which the quota for one request refills.
    refill: Duration,
    policy: HeaderValue,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    fn new(rate: Rate, of: Who) -> Option<Self> {
        let crate::config::Quota { requests, window_secs } = rate.0?;
        let refill = Duration::from_secs(window_secs.get().into()) / requests.get();
        let quota = Quota::with_period(refill.max(Duration::from_nanos(1)))?.allow_burst(requests);
        let buckets = RateLimiter::dashmap_with_clock(quota, DefaultClock::default());
        let policy = format!("\"{}\";q={requests};w={window_secs}", of.name());
        let policy = HeaderValue::try_from(policy).ok()?;
        Some(Self { of, buckets: buckets.with_middleware(), burst: requests.get(), refill, policy })
    }

    /// Counts one request. Returns what is left of the quota, or a refusal with the time to wait.
    fn count(&self, key: &K) -> Result<QuotaState, Problem> {
        match self.buckets.check_key(key) {
            Ok(state) => Ok(self.quota_state(state.remaining_burst_capacity())),
            Err(until) => {
                let wait = until.wait_time_from(self.buckets.clock().now());
                RequestNotes::note(|current| current.quota = Some(self.quota_state(0)));
                Err(Problem::new(Code::RateLimited, self.of.refusal())
                    .retry_after(ceil_secs(wait).max(1)))
            }
        }
    }

    fn quota_state(&self, remaining: u32) -> QuotaState {
        let missing = self.burst.saturating_sub(remaining);
        QuotaState { of: self.of, remaining, reset_secs: ceil_secs(self.refill * missing) }
    }

    /// Removes full buckets. The rest is bounded by the number of recent callers.
    fn forget_the_quiet(&self) {
        self.buckets.retain_recent();
        self.buckets.shrink_to_fit();
    }
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Write => "write",
            Self::Address => "address",
        }
    }

    fn refusal(self) -> &'static str {
        match self {
            Self::User => {
                "This user sends too many requests; nothing was changed. Wait for Retry-After."
            }
            Self::Write => {
                "This user changes too much at once; nothing was changed. Wait for Retry-After."
            }
            Self::Address => {
                "Too many requests come from this address; nothing was changed. Wait for Retry-After."
            }
        }
    }
}

fn ceil_secs(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

impl Rates {
    pub fn new(limits: &Limits) -> Self {
        Self {
            user: Limiter::new(limits.user_rate, Who::User),
            write: Limiter::new(limits.user_write_rate, Who::Write),
            address: Limiter::new(limits.address_rate, Who::Address),
            proxies: limits.trusted_proxies.clone(),
        }
    }

    /// Whether requests must carry their client's address.
    pub fn needs_address(&self) -> bool {
        self.address.is_some()
    }

    /// Counts an end user's request.
    pub fn count_user(&self, user: &UserId) -> Result<(), Problem> {
        if let Some(limiter) = &self.user {
            let quota = limiter.count(user)?;
            RequestNotes::note(|current| current.quota = Some(quota));
        }
        Ok(())
    }

    /// Counts an end user's write, in addition to [`Self::count_user`]. Headers report this quota
    /// only when it is used up.
    pub fn count_write(&self, user: &UserId) -> Result<(), Problem> {
        self.write.as_ref().map_or(Ok(()), |limiter| limiter.count(user).map(drop))
    }

    /// Counts a request by its client's address.
    pub fn count_address(&self, peer: Option<Peer>, headers: &HeaderMap) -> Result<(), Problem> {
        if let (Some(limiter), Some(Peer(peer))) = (&self.address, peer) {
            limiter.count(&network(self.client(peer, headers)))?;
        }
        Ok(())
    }

    /// The client's address: the peer's, or, if the peer is a trusted proxy, from
    /// `X-Forwarded-For`, read from the last hop backwards. The first hop that is not trusted is
    /// the client; the hops before it are ignored, as the client may have made them up.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let trusted =
            |address: &IpAddr| self.proxies.iter().any(|network| network.contains(address));
        let mut client = peer;
        let values: Vec<&str> =
            headers.get_all(FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok()).collect();
        let mut hops = values.iter().rev().flat_map(|value| value.rsplit(',')).take(MAX_HOPS);
        while trusted(&client)
            && let Some(hop) = hops.next().and_then(parse_hop)
        {
            client = hop;
        }
        client
    }

    /// Adds the rate-limit headers to the response of a counted request.
    pub fn write_headers(&self, headers: &mut HeaderMap, quota: Option<QuotaState>) {
        let Some(QuotaState { of, remaining, reset_secs }) = quota else { return };
        let policy = match of {
            Who::User => self.user.as_ref().map(|limiter| &limiter.policy),
            Who::Write => self.write.as_ref().map(|limiter| &limiter.policy),
            Who::Address => self.address.as_ref().map(|limiter| &limiter.policy),
        };
        let text = format!("\"{}\";r={remaining};t={reset_secs}", of.name());
        if let (Some(policy), Ok(text)) = (policy, HeaderValue::try_from(text)) {
            headers.insert(POLICY, policy.clone());
            headers.insert(RATE_LIMIT, text);
        }
    }

    /// Runs until `stopping`. Without it, memory would grow with every caller ever seen.
    pub async fn upkeep(self: Arc<Self>, stopping: CancellationToken) {
        while stopping.run_until_cancelled(tokio::time::sleep(RATE_UPKEEP)).await.is_some() {
            for limiter in [&self.user, &self.write].into_iter().flatten() {
                limiter.forget_the_quiet();
            }
            if let Some(limiter) = &self.address {
                limiter.forget_the_quiet();
            }
        }
    }
}

/// One hop of `X-Forwarded-For`: an address, with or without a port.
fn parse_hop(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let address = text.parse().ok().or_else(with_port)?;
    Some(IpAddr::to_canonical(&address))
}

/// IPv6 is counted by /64: the owner of one address has the whole network.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => IpAddr::V6((u128::from(six) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(user: &str, address: &str, proxies: &[&str]) -> Rates {
        Rates::new(&Limits {
            user_rate: user.parse().unwrap(),
            address_rate: address.parse().unwrap(),
            trusted_proxies: proxies.iter().map(|it| it.parse().unwrap()).collect(),
            ..Limits::default()
        })
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id).unwrap()
    }

    #[test]
    fn a_user_has_a_burst_and_then_what_refills() {
        let rates = rates("3/1s", "off", &[]);
        for _ in 0..3 {
            assert!(rates.count_user(&user("a")).is_ok());
        }
        assert_eq!(rates.count_user(&user("a")).unwrap_err().code(), Code::RateLimited);
        assert!(rates.count_user(&user("b")).is_ok(), "others have buckets of their own");
        std::thread::sleep(Duration::from_millis(400));
        assert!(rates.count_user(&user("a")).is_ok() && rates.count_user(&user("a")).is_err());
    }

    #[test]
    fn the_quiet_are_forgotten_and_the_busy_are_not() {
        let rates = rates("2/1s", "off", &[]);
        let limiter = rates.user.as_ref().unwrap();
        rates.count_user(&user("quiet")).unwrap();
        std::thread::sleep(Duration::from_millis(1_200));
        rates.count_user(&user("busy")).unwrap();
        rates.count_user(&user("busy")).unwrap();
        limiter.forget_the_quiet();
        assert_eq!(limiter.buckets.len(), 1);
        assert!(rates.count_user(&user("busy")).is_err());
    }

    #[test]
    fn only_trusted_proxies_say_who_calls() {
        let rates = rates("off", "1/1s", &["10.0.0.0/8", "fd00::/8"]);
        let client = |peer: &str, said: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in said {
                headers.append(FORWARDED_FOR, value.parse().unwrap());
            }
            rates.client(peer.parse().unwrap(), &headers).to_string()
        };
        assert_eq!(client("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(
            client("203.0.113.9", &["198.51.100.7"]),
            "203.0.113.9",
            "anybody can send the header"
        );
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 198.51.100.7, 10.0.0.2"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "198.51.100.7:1234"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["198.51.100.7, nonsense"]), "10.0.0.1");
        assert_eq!(client("fd00::1", &["[2001:db8::5]:443"]), "2001:db8::5");
        assert_eq!(client("10.0.0.1", &["::ffff:198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["10.0.0.2"]), "10.0.0.2");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let rates = rates("off", "1/10s", &[]);
        let count = |address: &str| {
            rates.count_address(Some(Peer(address.parse().unwrap())), &HeaderMap::new()).is_ok()
        };
        assert!(
            count("2001:db8:0:1::1") && !count("2001:db8:0:1:ffff::2") && count("2001:db8:0:2::1")
        );
        assert!(count("192.0.2.1") && !count("192.0.2.1") && count("192.0.2.2"));
    }
}
