//! The parser of a migration file: the oldest version that may use the schema after it, and its
//! steps.
//!
//! A line `-- oldest: N` says which binaries may go on working: those that know migration N. Lines
//! `-- step: TEXT` split the file into steps; without them the whole file is one step. A step is
//! one transaction, unless it builds or drops an index `CONCURRENTLY`, which PostgreSQL does only
//! outside of transactions: such a statement is a step of its own.

use std::borrow::Cow;

/// One migration. Its number is also the number of the schema that it makes.
#[derive(Clone, Debug)]
pub struct Migration {
    pub number: i32,
    pub name: Cow<'static, str>,
    /// The newest migration that a binary must know, at least, to use the schema after this one.
    pub oldest: i32,
    pub checksum: Vec<u8>,
    pub steps: Vec<MigrationStep>,
}

/// A unit that is executed and recorded together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MigrationStep {
    /// All statements in one transaction.
    Together(String),
    /// Builds an index without blocking writers. An interrupted build leaves an invalid index
    /// behind.
    BuildIndex { index: String, sql: String },
    /// Another statement that cannot run in a transaction. It must be repeatable.
    Alone(String),
}

/// A file that is not a valid migration; only developers see this error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("migration {number}: {why}")]
pub struct Malformed {
    pub number: i64,
    pub why: &'static str,
}

impl Migration {
    pub fn parse(source: &sqlx::migrate::Migration) -> Result<Self, Malformed> {
        let malformed = |why| Malformed { number: source.version, why };
        let number =
            i32::try_from(source.version).map_err(|_| malformed("its number is too large"))?;
        let oldest = source.sql.lines().find_map(|line| line.strip_prefix("-- oldest:"));
        let oldest = oldest.and_then(|text| text.trim().parse().ok());
        let oldest = match (number, oldest) {
            (1, None) => 1, // this file was released before the line existed
            (_, Some(oldest)) if (1..=number).contains(&oldest) => oldest,
            _ => {
                return Err(malformed(
                    "it needs a line `-- oldest: N`, N between 1 and its own number",
                ));
            }
        };
        let steps: Vec<MigrationStep> = parts(&source.sql).filter_map(|part| step(&part)).collect();
        if steps.is_empty() {
            return Err(malformed("it does nothing"));
        }
        let (name, checksum) = (source.description.clone(), source.checksum.to_vec());
        Ok(Self { number, name, oldest, checksum, steps })
    }
}

/// The text between the lines that begin a step, without comments.
fn parts(sql: &str) -> impl Iterator<Item = String> {
    let mut parts = vec![String::new()];
    for line in sql.lines() {
        match line.trim_start() {
            comment if comment.starts_with("-- step:") => parts.push(String::new()),
            comment if comment.starts_with("--") => {}
            _ => parts.iter_mut().last().into_iter().for_each(|part| part.extend([line, "\n"])),
        }
    }
    parts.into_iter()
}

fn step(part: &str) -> Option<MigrationStep> {
    let sql = part.trim().to_owned();
    let words: Vec<&str> = sql.split_whitespace().collect();
    let step = match words.as_slice() {
        [] => return None,
        ["CREATE", "INDEX", "CONCURRENTLY", index, ..]
        | ["CREATE", "UNIQUE", "INDEX", "CONCURRENTLY", index, ..] => {
            MigrationStep::BuildIndex { index: (*index).to_owned(), sql }
        }
        words if words.contains(&"CONCURRENTLY") => MigrationStep::Alone(sql),
        _ => MigrationStep::Together(sql),
    };
    Some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(sql: &'static str) -> Result<Migration, Malformed> {
        let kind = sqlx::migrate::MigrationType::Simple;
        Migration::parse(&sqlx::migrate::Migration::new(3, "some".into(), kind, sql.into(), false))
    }

    #[test]
    fn a_file_is_parted_into_steps() {
        let migration = parsed(
            "-- Why.\n-- oldest: 2\nALTER TABLE a ADD b text;\nSELECT 1;\n-- step: an index\n-- on it\n\
             CREATE UNIQUE INDEX CONCURRENTLY a_b\n    ON a (b);\n-- step:\nDROP INDEX CONCURRENTLY IF EXISTS c;\n",
        )
        .unwrap();
        assert_eq!((migration.number, migration.oldest), (3, 2));
        let build = "CREATE UNIQUE INDEX CONCURRENTLY a_b\n    ON a (b);".to_owned();
        let expected = [
            MigrationStep::Together("ALTER TABLE a ADD b text;\nSELECT 1;".into()),
            MigrationStep::BuildIndex { index: "a_b".into(), sql: build },
            MigrationStep::Alone("DROP INDEX CONCURRENTLY IF EXISTS c;".into()),
        ];
        assert_eq!(migration.steps, expected);
    }

    #[test]
    fn a_file_says_who_may_go_on() {
        for sql in
            ["SELECT 1;", "-- oldest: 4\nSELECT 1;", "-- oldest: 0\nSELECT 1;", "-- oldest: 2\n"]
        {
            assert!(parsed(sql).is_err(), "{sql}");
        }
    }
}
