//! Compares the gate's `meta` with the cursor, and checks the chain of entries. Pure, no I/O.

use super::cursor::Cursor;
use crate::log::RawEntry;
use crate::redis::meta::Meta;

/// How a cell's `meta` relates to its cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The same epoch, open, and Redis is at or past the cursor.
    Same,
    /// The gate is missing, closed, or went back in time: rebuild it from PostgreSQL.
    Rebuild(String),
    /// PostgreSQL is behind the position that the gate knows to be applied: nothing opens without
    /// an operator.
    TruthWentBack(String),
}

pub fn compare(cursor: &Cursor, meta: &Meta) -> Comparison {
    let rebuild = |why: String| Comparison::Rebuild(why);
    if meta.absent() {
        return rebuild("Redis holds no gate".into());
    }
    if meta.epoch > cursor.epoch {
        return went_back(format!(
            "the gate is in epoch {}, PostgreSQL only in {}",
            meta.epoch, cursor.epoch
        ));
    }
    if meta.epoch < cursor.epoch {
        return rebuild(format!(
            "the gate is in epoch {}, PostgreSQL already in {}",
            meta.epoch, cursor.epoch
        ));
    }
    if meta.applied > cursor.seq {
        return went_back(format!(
            "PostgreSQL had applied entry {} of epoch {} and now ends at {}",
            meta.applied, meta.epoch, cursor.seq
        ));
    }
    if meta.seq < cursor.seq {
        return rebuild(format!(
            "Redis went back in time: its log ends at {}, PostgreSQL has {}",
            meta.seq, cursor.seq
        ));
    }
    if meta.seq == cursor.seq && meta.tip != cursor.tip {
        return rebuild(format!(
            "Redis holds another entry {} than PostgreSQL has applied",
            meta.seq
        ));
    }
    if meta.state != "open" {
        return rebuild(format!(
            "the cell is closed: {}",
            meta.reason.as_deref().unwrap_or("no reason given")
        ));
    }
    Comparison::Same
}

fn went_back(what: String) -> Comparison {
    Comparison::TruthWentBack(format!(
        "PostgreSQL went back in time or is another shop's ({what}). If it was restored from a backup and should be the \
         truth from now on, run `rushgate rebuild`; otherwise correct RUSHGATE_DATABASE_URL or RUSHGATE_REDIS_URL"
    ))
}

/// The entries that follow the cursor without a gap and with an intact chain.
pub fn unbroken(cursor: &Cursor, entries: Vec<RawEntry>) -> Vec<RawEntry> {
    let (mut seq, mut tip) = (cursor.seq, cursor.tip.clone());
    entries
        .into_iter()
        .take_while(|entry| {
            let follows =
                entry.epoch == cursor.epoch && entry.seq == seq + 1 && entry.follows(&tip);
            seq = entry.seq;
            tip.clone_from(&entry.tip);
            follows
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::entry::chain_tip;

    fn cursor(epoch: u64, seq: u64) -> Cursor {
        let tip = format!("tip-{seq}");
        Cursor {
            cell: 0,
            epoch,
            seq,
            tip,
            clock_ms: 0,
            halted_reason: None,
            gate: None,
            skipping: false,
        }
    }

    fn meta(epoch: u64, seq: u64, applied: u64) -> Meta {
        Meta {
            epoch,
            seq,
            tip: format!("tip-{seq}"),
            applied,
            state: "open".into(),
            ..Meta::default()
        }
    }

    #[test]
    fn an_open_gate_at_or_past_the_cursor_goes_on() {
        assert_eq!(compare(&cursor(3, 7), &meta(3, 7, 7)), Comparison::Same);
        assert_eq!(compare(&cursor(3, 7), &meta(3, 9, 5)), Comparison::Same);
    }

    #[test]
    fn a_gate_that_is_gone_closed_or_older_is_rebuilt() {
        let closed = Meta { state: "closed".into(), ..meta(3, 7, 7) };
        let other = Meta { tip: "another".into(), ..meta(3, 7, 7) };
        for bad in [Meta::default(), meta(2, 9, 9), meta(3, 6, 6), other, closed] {
            assert!(matches!(compare(&cursor(3, 7), &bad), Comparison::Rebuild(_)), "{bad:?}");
        }
    }

    #[test]
    fn a_truth_that_went_back_opens_nothing() {
        for bad in [meta(4, 0, 0), meta(3, 9, 8), Meta { state: "closed".into(), ..meta(3, 9, 8) }]
        {
            assert!(
                matches!(compare(&cursor(3, 7), &bad), Comparison::TruthWentBack(_)),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn entries_count_only_while_number_and_chain_hold() {
        let entry = |seq: u64, tip: &str, payload: &str| RawEntry {
            traces: vec![],
            epoch: 3,
            seq,
            payload: payload.as_bytes().to_vec(),
            tip: tip.to_owned(),
        };
        let (a, b) = (chain_tip("tip-7", b"a"), chain_tip(&chain_tip("tip-7", b"a"), b"b"));
        let good = vec![entry(8, &a, "a"), entry(9, &b, "b")];
        assert_eq!(unbroken(&cursor(3, 7), good.clone()), good);
        let mut forged = good.clone();
        forged[1].payload = b"x".to_vec();
        assert_eq!(unbroken(&cursor(3, 7), forged).len(), 1);
        assert_eq!(unbroken(&cursor(3, 7), vec![good[1].clone()]).len(), 0, "a gap");
        assert_eq!(unbroken(&cursor(2, 7), good).len(), 0, "another epoch");
    }
}
