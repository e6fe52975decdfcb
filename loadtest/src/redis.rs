//! A minimal Redis client with a connection of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::Outcome;

const LIMIT: Duration = Duration::from_secs(60);

pub struct Redis {
    stream: BufReader<TcpStream>,
}

/// State of the first cell's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub epoch: u64,
    pub seq: u64,
    /// The last entry that PostgreSQL has applied, as the gate knows it.
    pub applied: u64,
    pub open: bool,
}

/// A reply, limited to the types that are needed here.
#[derive(Debug)]
enum Reply {
    Text(Vec<u8>),
    Number(i64),
    List(Vec<Reply>),
    Nil,
}

impl Redis {
    pub fn connect(port: u16) -> Outcome<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn call(&mut self, words: &[&str]) -> Outcome<Reply> {
        let mut out = format!("*{}\r\n", words.len());
        for word in words {
            out += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream.get_mut().write_all(out.as_bytes())?;
        self.reply()
    }

    fn reply(&mut self) -> Outcome<Reply> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        let Some((kind, rest)) = line.split_at_checked(1) else {
            return Err("Redis hung up".into());
        };
        match kind {
            "+" => Ok(Reply::Text(rest.into())),
            ":" => Ok(Reply::Number(rest.parse()?)),
            "$" | "*" if rest.starts_with('-') => Ok(Reply::Nil),
            "$" => {
                let mut text = vec![0; rest.parse::<usize>()? + 2];
                self.stream.read_exact(&mut text)?;
                text.truncate(text.len() - 2);
                Ok(Reply::Text(text))
            }
            "*" => {
                Ok(Reply::List((0..rest.parse()?).map(|_| self.reply()).collect::<Outcome<_>>()?))
            }
            _ => Err(format!("Redis: {line}").into()),
        }
    }

    /// All numeric fields of INFO.
    pub fn info(&mut self) -> Outcome<HashMap<String, u64>> {
        let Reply::Text(text) = self.call(&["INFO", "everything"])? else {
            return Err("INFO is no text".into());
        };
        let text = String::from_utf8_lossy(&text);
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    pub fn log(&mut self) -> Outcome<Log> {
        let reply = self.call(&["HMGET", "rg:{0}:meta", "epoch", "seq", "applied", "state"])?;
        let Reply::List(values) = reply else { return Err("HMGET is no list".into()) };
        let text = |i: usize| match values.get(i) {
            Some(Reply::Text(text)) => String::from_utf8_lossy(text).into_owned(),
            _ => String::new(),
        };
        let number = |i| text(i).parse().unwrap_or(0);
        Ok(Log { epoch: number(0), seq: number(1), applied: number(2), open: text(3) == "open" })
    }

    /// Memory of a key in bytes, with all of its elements counted.
    pub fn bytes_of(&mut self, key: &str) -> Outcome<u64> {
        match self.call(&["MEMORY", "USAGE", key, "SAMPLES", "0"])? {
            Reply::Number(bytes) => Ok(u64::try_from(bytes)?),
            other => Err(format!("{key}: {other:?}").into()),
        }
    }

    /// Changes a setting until Redis restarts.
    pub fn set_config(&mut self, name: &str, value: &str) -> Outcome<()> {
        self.call(&["CONFIG", "SET", name, value]).map(drop)
    }

    pub fn flush(&mut self) -> Outcome<()> {
        self.call(&["FLUSHALL", "SYNC"]).map(drop)
    }
}
