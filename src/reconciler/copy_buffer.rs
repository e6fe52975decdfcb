//! Rows in PostgreSQL's binary COPY format, which fills whole pages at once and needs neither an
//! expression nor a WAL record per row. Specification:
//! <https://www.postgresql.org/docs/15/sql-copy.html>, "Binary Format".

use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::TimestampMs;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// In place of a row's field count: no more rows follow.
const TRAILER: i16 = -1;
/// In place of a field's length: the field is null.
const NULL: i32 = -1;
/// PostgreSQL's epoch, 2000-01-01T00:00:00Z, in milliseconds since 1970.
const POSTGRES_EPOCH_MS: TimestampMs = 946_684_800_000;

/// A value of the column's type.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    Uuid(Uuid),
    Text(&'a str),
    Bigint(i64),
    Smallint(i16),
    /// `timestamptz`
    Time(TimestampMs),
    Bool(bool),
    Null,
}

/// Rows of `COLUMNS` fields each.
#[derive(Clone, Debug, Default)]
pub struct CopyBuffer<const COLUMNS: usize>(Vec<u8>);

impl<const COLUMNS: usize> CopyBuffer<COLUMNS> {
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
                    self.field(
                        &at.saturating_sub(POSTGRES_EPOCH_MS).saturating_mul(1_000).to_be_bytes(),
                    );
                }
                Field::Bool(yes) => self.field(&[u8::from(yes)]),
                Field::Null => self.0.extend_from_slice(&NULL.to_be_bytes()),
            }
        }
    }

    fn field(&mut self, value: &[u8]) {
        // A longer value does not fit through the log, and PostgreSQL would refuse the row.
        self.0.extend_from_slice(&i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
        self.0.extend_from_slice(value);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends the rows with `copy`, a COPY statement that names as many columns. Without rows,
    /// nothing is sent.
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
        let mut rows = CopyBuffer::<2>::default();
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
