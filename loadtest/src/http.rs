//! An HTTP/1.1 load generator on one thread, with many connections and one request at a time on
//! each.
//!
//! [`Pace::AtOnce`] sends as fast as possible, for filling a shop. [`Pace::PerSecond`] is open
//! loop: request `i` is due at `i / rate`, whether or not earlier ones were answered, and its
//! latency counts from that moment. So a server that stalls is charged for all requests that had to
//! wait, not only for those in flight. (Otherwise the result would suffer from coordinated
//! omission.)

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::Outcome;

/// A missing answer ends the run after this time.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const TIMER: u64 = u64::MAX;
/// Minimum sleep; afterwards all due requests are sent. A timer per request would take CPU time
/// from what is measured. Latencies count from when a request was due, so this can only increase
/// them.
const TICK: Duration = Duration::from_micros(250);
const READ_BYTES: usize = 16 * 1024;

#[derive(Clone, Copy, Debug)]
pub enum Pace {
    AtOnce,
    PerSecond(f64),
}

pub struct Drive {
    pub address: SocketAddr,
    pub connections: usize,
    pub pace: Pace,
    /// Total number of requests.
    pub count: u64,
}

/// The answer to a request.
pub struct HttpAnswer<'a> {
    /// Number of the request: 0, 1, 2, …
    pub index: u64,
    pub status: u16,
    pub body: &'a [u8],
    /// Since the moment at which the request was due.
    pub latency: Duration,
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    filled: usize,
    under_way: Option<(u64, Instant)>,
}

/// What arrived on a connection.
enum Received {
    Part,
    HttpAnswer,
    /// The server closed the connection while no request was in flight.
    End,
}

impl Drive {
    /// Sends `count` requests, each written by `write`, and passes each answer to `take`. Returns
    /// the total time.
    pub fn run(
        &self,
        mut write: impl FnMut(u64, &mut Vec<u8>),
        mut take: impl FnMut(&HttpAnswer<'_>) -> Outcome<()>,
    ) -> Outcome<Duration> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
        )?;
        // Edge-triggered, so that the timer need not be read when it expires.
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        let mut connections = Vec::with_capacity(self.connections);
        for number in 0..self.connections {
            let connection = Connection::open(self.address)?;
            epoll.add(&connection.stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
            connections.push(connection);
        }
        let mut idle: Vec<usize> = (0..self.connections).rev().collect();
        let mut events = vec![EpollEvent::empty(); self.connections.min(1_024) + 1];
        let (mut next, mut answered, mut request, mut timer_runs) = (0, 0, Vec::new(), false);
        let begin = Instant::now();
        while answered < self.count {
            let now = Instant::now();
            while next < self.count && self.due(begin, next) <= now {
                let Some(free) = idle.pop() else { break };
                request.clear();
                write(next, &mut request);
                connections[free].send(&request, next, self.due(begin, next))?;
                next += 1;
            }
            if next < self.count && !idle.is_empty() && !timer_runs {
                let wait = self.due(begin, next).saturating_duration_since(now).max(TICK);
                let expiration = Expiration::OneShot(TimeSpec::from_duration(wait));
                timer.set(expiration, TimerSetTimeFlags::empty())?;
                timer_runs = true;
            }
            let woken = match epoll.wait(&mut events, EpollTimeout::try_from(ANSWER_LIMIT)?) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
            if woken == 0 {
                return Err(format!("{}: no answer in {ANSWER_LIMIT:?}", self.address).into());
            }
            for event in &events[..woken] {
                if event.data() == TIMER {
                    timer_runs = false;
                    continue;
                }
                let number = usize::try_from(event.data())?;
                match connections[number].receive(&mut take)? {
                    Received::Part => {}
                    Received::HttpAnswer => {
                        answered += 1;
                        idle.push(number);
                    }
                    // The connection was idle for longer than the server allows. The old one leaves
                    // epoll when it is dropped.
                    Received::End => {
                        connections[number] = Connection::open(self.address)?;
                        let event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
                        epoll.add(&connections[number].stream, event)?;
                    }
                }
            }
        }
        Ok(begin.elapsed())
    }

    fn due(&self, begin: Instant, index: u64) -> Instant {
        match self.pace {
            Pace::AtOnce => begin,
            Pace::PerSecond(rate) => begin + Duration::from_secs_f64(index as f64 / rate),
        }
    }
}

impl Connection {
    fn open(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, read: vec![0; READ_BYTES], filled: 0, under_way: None })
    }

    /// Cannot block: requests are far smaller than the socket's buffer, which is empty while no
    /// answer is awaited.
    fn send(&mut self, request: &[u8], index: u64, due: Instant) -> Outcome<()> {
        self.stream.write_all(request)?;
        self.under_way = Some((index, due));
        Ok(())
    }

    /// Reads what has arrived.
    fn receive(
        &mut self,
        take: &mut impl FnMut(&HttpAnswer<'_>) -> Outcome<()>,
    ) -> Outcome<Received> {
        if self.filled == self.read.len() {
            self.read.resize(self.filled * 2, 0);
        }
        match self.stream.read(&mut self.read[self.filled..]) {
            Ok(0) if self.under_way.is_none() => return Ok(Received::End),
            Ok(0) => return Err("the server hung up instead of answering".into()),
            Ok(length) => self.filled += length,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Received::Part),
            Err(e) => return Err(e.into()),
        }
        let Some((status, body_at, length)) = head(&self.read[..self.filled])? else {
            return Ok(Received::Part);
        };
        if self.filled < body_at + length {
            return Ok(Received::Part);
        }
        let (index, due) = self.under_way.take().ok_or("an answer that nobody asked for")?;
        self.filled = 0;
        let body = &self.read[body_at..body_at + length];
        take(&HttpAnswer { index, status, body, latency: due.elapsed() })?;
        Ok(Received::HttpAnswer)
    }
}

/// Status, start of the body and its length; `None` while the head is incomplete.
fn head(bytes: &[u8]) -> Outcome<Option<(u16, usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end])?;
    let status = head.get(9..12).ok_or("no status line")?.parse()?;
    let length = head
        .split("\r\n")
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .ok_or("an answer without Content-Length")?
        .1
        .parse()?;
    Ok(Some((status, end + 4, length)))
}

/// The text of a request, with a JSON body if `body` is not empty.
pub fn request(method: &str, path: &str, token: Option<&str>, more: &str, body: &str) -> String {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let about_body = match body.is_empty() {
        true => String::new(),
        false => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{token}{about_body}{more}\r\n{body}")
}

/// Sends one request. Returns the answer's status and body.
pub fn ask(address: SocketAddr, request: &str) -> Outcome<(u16, String)> {
    let mut answer = (0, String::new());
    let once = Drive { address, connections: 1, pace: Pace::AtOnce, count: 1 };
    once.run(
        |_, out| out.extend_from_slice(request.as_bytes()),
        |it| {
            answer = (it.status, String::from_utf8_lossy(it.body).into_owned());
            Ok(())
        },
    )?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that answers `count` requests on one connection, the first one after `stall`.
    fn stalling_server(count: usize, stall: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1_024];
            for i in 0..count {
                assert!(stream.read(&mut buffer).unwrap() > 0);
                if i == 0 {
                    std::thread::sleep(stall);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            }
        });
        address
    }

    #[test]
    fn a_connection_that_the_server_closed_while_it_was_idle_is_opened_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                assert!(stream.read(&mut [0; 1_024]).unwrap() > 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            }
        });
        let drive = Drive { address, connections: 1, pace: Pace::PerSecond(10.0), count: 3 };
        let (mut answers, request) = (0, request("GET", "/", None, "", ""));
        let write = |_: u64, out: &mut Vec<u8>| out.extend_from_slice(request.as_bytes());
        drive
            .run(write, |_| {
                answers += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(answers, 3);
    }

    #[test]
    fn those_who_had_to_wait_for_a_stalled_server_are_counted_from_when_they_were_due() {
        let stall = Duration::from_millis(200);
        let drive = Drive {
            address: stalling_server(10, stall),
            connections: 1,
            pace: Pace::PerSecond(100.0),
            count: 10,
        };
        let mut latencies = vec![];
        let request = request("GET", "/", None, "", "");
        drive
            .run(
                |_, out| out.extend_from_slice(request.as_bytes()),
                |answer| {
                    assert_eq!((answer.status, answer.body), (200, &b"ok"[..]));
                    latencies.push(answer.latency);
                    Ok(())
                },
            )
            .unwrap();
        // Request 5 was due at 50 ms, and no answer came before 200 ms.
        assert!(
            latencies[0] >= stall && latencies[5] >= Duration::from_millis(140),
            "{latencies:?}"
        );
        assert_eq!(latencies.len(), 10);
    }
}
