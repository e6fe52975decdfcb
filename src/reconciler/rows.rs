//! Rows on their way into a table: PostgreSQL's binary format of COPY, which fills pages at once and takes neither an
//! expression nor a log record per row. Its source: <https://www.postgresql.org/docs/15/sql-copy.html>, "Binary Format".

use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::TimestampMs;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Instead of a row's number of fields: there are no more rows.
const TRAILER: i16 = -1;
/// Instead of a field's number of bytes: it is null.
const NULL: i32 = -1;
/// 2000-01-01T00:00:00Z, from which PostgreSQL counts, in milliseconds since 1970.
const POSTGRES_EPOCH_MS: TimestampMs = 946_684_800_000;

/// A value, of the type that the column has.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    Uuid(Uuid),
    Text(&'a str),
    Bigint(i64),
    Smallint(i16),
    /// `timestamptz`
    Time(TimestampMs),
    Null,
}

/// Rows of `COLUMNS` fields each.
#[derive(Clone, Debug, Default)]
pub struct Rows<const COLUMNS: usize>(Vec<u8>);

impl<const COLUMNS: usize> Rows<COLUMNS> {
    pub fn add(&mut self, fields: [Field<'_>; COLUMNS]) {
        if self.is_empty() {
            self.0.extend_from_slice(HEADER);
        }
        self.0.extend_from_slice(&(COLUMNS as i16).to_be_bytes());
        for field in fields {
            match field {
                Field::Uuid(id) => self.field(id.as_bytes()),
                Field::Text(text) => self.field(text.as_bytes()),
                Field::Bigint(number) => self.field(&number.to_be_bytes()),
                Field::Smallint(number) => self.field(&number.to_be_bytes()),
                Field::Time(at) => {
                    self.field(&at.saturating_sub(POSTGRES_EPOCH_MS).saturating_mul(1_000).to_be_bytes());
                }
                Field::Null => self.0.extend_from_slice(&NULL.to_be_bytes()),
            }
        }
    }

    fn field(&mut self, value: &[u8]) {
        // What is longer than that does not come through the log, and PostgreSQL would refuse the row.
        self.0.extend_from_slice(&i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
        self.0.extend_from_slice(value);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes them by `copy`, a COPY that names as many columns. Without rows, PostgreSQL is not asked.
    pub async fn write(&self, conn: &mut PgConnection, copy: &str) -> Result<(), sqlx::Error> {
        if self.is_empty() {
            return Ok(());
        }
        let mut copying = conn.copy_in_raw(copy).await?;
        copying.send(self.0.as_slice()).await?;
        copying.send(&TRAILER.to_be_bytes()[..]).await?;
        copying.finish().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_form_that_postgresql_documents() {
        let mut rows = Rows::<2>::default();
        assert!(rows.is_empty());
        rows.add([Field::Text("ab"), Field::Null]);
        rows.add([Field::Smallint(-2), Field::Time(POSTGRES_EPOCH_MS + 1)]);
        let mut expected = b"PGCOPY\n\xff\r\n\0".to_vec();
        expected.extend([0; 8]);
        expected.extend(*b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff");
        expected.extend(*b"\0\x02\0\0\0\x02\xff\xfe\0\0\0\x08\0\0\0\0\0\0\x03\xe8");
        assert_eq!(rows.0, expected);
    }
}
