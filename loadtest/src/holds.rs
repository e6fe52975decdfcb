//! When the pieces of ended holds were seen in stock again.

use serde_json::Value;

/// What a pending order holds of one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// `hold_expires_at`, in ms.
    pub ends_ms: i64,
    pub pieces: u64,
}

/// For each hold that ended after the first sample, in the order of their ends: the time in ms from
/// its end until a sample showed that its pieces were back; `None` if no sample did.
///
/// Samples are times in ms and the stock at that time. Nothing but the ends of these holds may have
/// changed the stock since the first one. Holds that end earlier count as given back earlier.
pub fn seen_back(holds: &[Hold], samples: &[(i64, u64)]) -> Vec<Option<i64>> {
    let Some(&(from_ms, before)) = samples.first() else { return vec![None; holds.len()] };
    let mut ends: Vec<Hold> = holds.iter().copied().filter(|it| it.ends_ms > from_ms).collect();
    ends.sort_by_key(|hold| hold.ends_ms);
    let mut samples = samples.iter().peekable();
    let mut expected = before;
    let back = |hold: Hold| {
        expected += hold.pieces;
        while samples.next_if(|(_, stock)| *stock < expected).is_some() {}
        samples.peek().map(|(at_ms, _)| at_ms - hold.ends_ms)
    };
    ends.into_iter().map(back).collect()
}

/// A moment of an answer, in ms since 1970.
pub fn moment_ms(answer: &Value, name: &str) -> Option<i64> {
    let moment: jiff::Timestamp = answer[name].as_str()?.parse().ok()?;
    Some(moment.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(ends_ms: i64, pieces: u64) -> Hold {
        Hold { ends_ms, pieces }
    }

    #[test]
    fn each_hold_is_seen_back_when_the_stock_has_its_pieces_and_those_of_earlier_ones() {
        let holds = [hold(2_000, 1), hold(1_000, 2), hold(2_000, 1), hold(400, 5)];
        let samples = [(500, 10), (1_100, 11), (1_200, 12), (2_050, 13), (2_300, 14)];
        // The last one ended before the first sample, which shows its pieces already.
        assert_eq!(seen_back(&holds, &samples), [Some(200), Some(50), Some(300)]);
    }

    #[test]
    fn a_piece_that_is_missing_is_never_seen_back() {
        let holds = [hold(1_000, 2), hold(2_000, 1)];
        assert_eq!(seen_back(&holds, &[(500, 10), (9_000, 12)]), [Some(8_000), None]);
        assert_eq!(seen_back(&holds, &[]), [None, None]);
    }
}
