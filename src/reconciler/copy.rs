//! Rows on their way into an append-only table by `COPY … FROM STDIN (FORMAT binary)`.
//!
//! PostgreSQL puts the rows of a COPY into a page together, with one WAL record, where an INSERT takes them one by one.
//! The rows are written down as soon as they are planned, so no column of them is ever kept. Constraints hold as ever; a
//! row that breaks one fails the whole COPY, and with it the transaction.
//!
//! The format: a header, then for each row its number of fields, and for each field its length in bytes (-1: null) and
//! its bytes, all integers in network order; then a trailer.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::TimestampMs;

/// The signature, no flags, no header extension.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
/// Bytes in one message: few messages, but PostgreSQL begins before the last has been sent.
const CHUNK: usize = 256 * 1024;
/// 2000-01-01, where PostgreSQL's time begins, in microseconds since 1970.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// A value as COPY wants it.
pub trait Field {
    /// Appends the length and the bytes.
    fn put(&self, out: &mut Vec<u8>);
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // No text of an entry comes near 2 GiB. If one did, PostgreSQL would refuse the length.
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

impl Field for i16 {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(&self.to_be_bytes(), out);
    }
}

impl Field for i64 {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(&self.to_be_bytes(), out);
    }
}

impl Field for &str {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
}

impl Field for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
}

impl Field for Uuid {
    fn put(&self, out: &mut Vec<u8>) {
        put_bytes(self.as_bytes(), out);
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Some(value) => value.put(out),
            None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }
}

/// A `timestamptz`.
pub struct At(pub TimestampMs);

impl Field for At {
    fn put(&self, out: &mut Vec<u8>) {
        let micros = self.0.saturating_mul(1_000).saturating_sub(POSTGRES_EPOCH_US);
        // The outermost numbers mean infinity, which PostgreSQL takes; those next to them it refuses.
        micros.clamp(i64::MIN + 1, i64::MAX - 1).put(out);
    }
}

/// Rows of one table, in the order in which they go in.
#[derive(Debug, Default)]
pub struct CopyRows {
    bytes: Vec<u8>,
    count: u64,
}

impl CopyRows {
    pub fn push<const N: usize>(&mut self, fields: [&dyn Field; N]) {
        const { assert!(N <= i16::MAX as usize) };
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(HEADER);
        }
        self.bytes.extend_from_slice(&(N as i16).to_be_bytes());
        for field in fields {
            field.put(&mut self.bytes);
        }
        self.count += 1;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// Runs `statement`, a COPY, with these rows; without rows, nothing.
    pub async fn copy(&self, conn: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
        if self.count == 0 {
            return Ok(());
        }
        let mut copy = conn.copy_in_raw(statement).await?;
        for chunk in self.bytes.chunks(CHUNK) {
            copy.send(chunk).await?;
        }
        copy.send(TRAILER.as_slice()).await?;
        copy.finish().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(field: &dyn Field) -> Vec<u8> {
        let mut out = vec![];
        field.put(&mut out);
        out
    }

    #[test]
    fn fields_are_written_as_postgresql_reads_them() {
        assert_eq!(put(&-2_i16), [0, 0, 0, 2, 0xff, 0xfe]);
        assert_eq!(put(&1_i64), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(put(&"é"), [0, 0, 0, 2, 0xc3, 0xa9]);
        assert_eq!(put(&String::new()), [0, 0, 0, 0]);
        assert_eq!(put(&Uuid::from_u128(7))[..5], [0, 0, 0, 16, 0]);
        assert_eq!(put(&Uuid::from_u128(7)).len(), 20);
        assert_eq!(put(&None::<i64>), [0xff; 4]);
        assert_eq!(put(&Some(3_i16)), put(&3_i16));
    }

    #[test]
    fn time_begins_in_the_year_2000() {
        assert_eq!(put(&At(946_684_800_000)), put(&0_i64));
        assert_eq!(put(&At(946_684_800_001)), put(&1_000_i64));
        assert_eq!(put(&At(0)), put(&-POSTGRES_EPOCH_US));
    }

    #[test]
    fn no_time_becomes_infinite() {
        assert_eq!(put(&At(i64::MAX)), put(&(i64::MAX - POSTGRES_EPOCH_US)));
        assert_eq!(put(&At(i64::MIN)), put(&(i64::MIN + 1)));
    }

    #[test]
    fn rows_follow_one_header_in_order() {
        let mut rows = CopyRows::default();
        rows.push([&1_i16, &"a"]);
        rows.push([&2_i16, &None::<String>]);
        assert_eq!(rows.count(), 2);
        let (header, rest) = rows.bytes.split_at(19);
        assert_eq!(header, b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        let first = [0, 2, 0, 0, 0, 2, 0, 1, 0, 0, 0, 1, b'a'];
        let second = [0, 2, 0, 0, 0, 2, 0, 2, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(rest, [first.as_slice(), &second].concat());
    }
}
